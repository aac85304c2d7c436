"""Configurations of models and streams: frozen, and validated when they are built."""
