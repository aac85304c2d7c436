"""Ops on heads and on the keys and values that streams keep."""
