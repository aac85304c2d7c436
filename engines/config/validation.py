"""Checks that configurations share."""

from __future__ import annotations

from engines.errors import ConfigError


def require(holds: bool, message: str) -> None:
    """Raise ConfigError with `message` unless it `holds`."""
    if not holds:
        raise ConfigError(message)


def require_positive(**values: int) -> None:
    """Raise ConfigError, which names it, if a value is below 1."""
    for name, value in values.items():
        require(value >= 1, f"{name} is {value}; it must be at least 1")
