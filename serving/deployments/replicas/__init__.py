"""The replicas that own devices."""
