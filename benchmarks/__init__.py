"""Measured programs: each prints a table and writes JSON."""
