"""Streams, what makes their blocks, and their snapshots."""
