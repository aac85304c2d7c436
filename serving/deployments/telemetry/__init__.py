"""Metrics and logs of replicas."""
