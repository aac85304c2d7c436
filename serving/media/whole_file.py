"""Files that are there whole or not at all: written beside their name, which they take at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what is to be `path`: it takes that name at the end of the block; nothing does if that fails.

    The place has the ending of `path`, by which libraries choose a format. Raises OSError.
    """
    place = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield place
        put_in_place(place, path)
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def put_in_place(place: Path, path: Path) -> None:
    """Give the file at `place` the name `path`, and what was there up, once all of it is on the disk."""
    with place.open("rb") as file:
        os.fsync(file.fileno())
    # What a link points to is replaced, not the link.
    place.replace(path.resolve())


def is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one at `path`: another may have its name by now, or none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file.fileno()), found)


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8; `path` is what it was before if that fails."""
    with whole_file(path) as place:
        place.write_text(text, encoding="utf-8")
