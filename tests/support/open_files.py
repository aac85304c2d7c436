"""What this process holds open."""

from __future__ import annotations

from pathlib import Path


def open_files() -> int:
    """How many handles of files and sockets."""
    return len(list(Path("/proc/self/fd").iterdir()))
