"""Slots, positions and bytes of the keys and values that streams keep."""
