"""Files that are there whole or not at all: written beside their name, which they take at the end."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

MARK = ".unfinished-"
"""In the names of folders for files that are being written, or were as a process died."""

LOCK = "lock"
"""In such a folder, the file whose lock its writer holds."""

WAIT_S = 0.05
"""From one look at a lock to the next."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what is to be `path`: it takes that name at the end of the block; nothing does if that fails.

    The place has the name of `path`, by whose ending libraries choose a format. Raises OSError.
    """
    path = real_path(path)
    with folder_beside(path) as folder:
        place = folder / path.name
        yield place
        put_in_place(place, path)


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8; `path` is what it was before if that fails."""
    with whole_file(path) as place:
        place.write_text(text, encoding="utf-8")


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what is to take its place, removed with what is left in it as the block ends.

    What processes that were killed left beside it in folders like this goes first. Raises OSError.
    """
    for left in path.parent.glob(f".*{MARK}*"):
        _remove_if_left(left)
    folder = path.with_name(f".{path.name}{MARK}{os.getpid()}")
    with closing(_made(folder)):
        try:
            yield folder
        finally:
            _remove(folder)


def put_in_place(place: Path, path: Path) -> None:
    """Give the file at `place` the name `path`, and what was there up, once all of it is on the disk."""
    with place.open("rb") as file:
        os.fsync(file.fileno())
    place.replace(path)


def real_path(path: Path) -> Path:
    """Where `path` leads. What is written beside that can take its place: it is on the same file system."""
    return Path(os.path.realpath(path))


def locked(path: Path, flags: int = 0) -> BinaryIO | None:
    """A file that is nobody else's; None where it is, or is not at its path any more and not to be made anew."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | flags, 0o666), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        # Whoever had it before may have given it another name meanwhile.
        if is_at(file, path):
            return file
        file.close()
        if not flags & os.O_CREAT:
            return None


def is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one at `path`: another may have its name by now, or none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file.fileno()), found)


def _made(folder: Path) -> BinaryIO:
    """The lock of a folder that is new; where another thread has it, that is waited for."""
    while True:
        with suppress(FileExistsError):
            folder.mkdir()
        with suppress(FileNotFoundError):  # Until it is locked, another process may take it for left behind.
            if (lock := locked(folder / LOCK, os.O_CREAT)) is not None:
                return lock
        time.sleep(WAIT_S)


def _remove_if_left(folder: Path) -> None:
    """Of a process that lives, wherever it runs, the lock is held: numbers of processes are used again."""
    with suppress(OSError):  # It is somebody else's, or another process was faster.
        if (lock := locked(folder / LOCK)) is not None:
            with closing(lock):
                _remove(folder)


def _remove(folder: Path) -> None:
    """Under another name: who waits for the folder would make a lock in it again while it is emptied."""
    shutil.rmtree(folder.rename(folder.with_name(f"{folder.name}-{uuid.uuid4().hex}")))
