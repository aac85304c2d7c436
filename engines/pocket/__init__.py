"""The pocket model: a procedural world, and the programs that train a small model on it."""
