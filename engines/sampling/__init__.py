"""Noise levels and noise: pure functions."""
