"""A server on one machine: its settings, what is checked before it starts, and its processes."""
