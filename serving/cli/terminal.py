"""What goes to a terminal: lines, how far something is, tables, and nothing that steers it.

All that commands print goes through here: much of it others have said, a hub, a server, a file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

JOINERS = "\u200c\u200d"
"""Invisible, and part of many scripts' words and of many emoji."""


def escaped(text: str) -> str:
    """A text of others in one line, with escapes for what would steer a terminal, or reorder what it shows."""
    return "".join(c if c.isprintable() or c in JOINERS else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def say(*lines: str) -> None:
    """On standard output."""
    for line in lines:
        print(escaped(line), flush=True)


def tell(*lines: str) -> None:
    """On standard error."""
    for line in lines:
        print(escaped(line), file=sys.stderr, flush=True)


def show_progress(line: str, *, is_last: bool) -> None:
    """On standard error, in place of the last one; the one that is last stays."""
    print(f"\r{escaped(line)}\x1b[K", end="\n" if is_last else "", file=sys.stderr, flush=True)


def show_line(line: str) -> None:
    """On standard error, in place of the last one on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{escaped(line)}\x1b[K", end="", file=sys.stderr, flush=True)
    else:
        print(escaped(line), file=sys.stderr, flush=True)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """On standard output, in columns that are as wide as their longest cell."""
    rows = [[escaped(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
