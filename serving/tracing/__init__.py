"""Spans of blocks, for OpenTelemetry."""
