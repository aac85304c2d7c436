"""One line on standard error that says how far something is."""

from __future__ import annotations

import sys


def show_line(line: str) -> None:
    """In place of the last one, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)
