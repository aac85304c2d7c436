"""How many replicas each stage has, by what those that run report."""
