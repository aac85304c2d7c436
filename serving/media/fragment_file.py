"""Chunks in a file that grows by whole fragments, of which one process at a time is the writer."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Self

from serving.errors import FilmError
from serving.media.chunk import Chunk
from serving.media.fmp4 import FILE_TYPE, Box, Fragments, box, boxes, frames_of
from serving.media.whole_file import is_at

Facts = Mapping[str, str | int]

MAX_FACTS_BYTES = 1 << 16


class FragmentFile:
    """A fragmented MP4 whose first frame is at time 0: every chunk of it is whole once it has been appended.

    `facts` are in it from the beginning. Whoever has opened it holds its lock, which ends with the process. What
    the disk refuses raises OSError, and leaves the file as it was.
    """

    def __init__(self, path: Path, file: BinaryIO, facts: Facts) -> None:
        """Go on with a locked file, behind its last whole fragment."""
        self.path, self.facts = path, facts
        self._file = file
        self._movie: bytes | None = None
        self.frames = self._end = 0
        self._look_through()

    @classmethod
    def create(cls, path: Path, facts: Facts) -> Self | None:
        """A new file; None where there is one of that name."""
        try:
            file = _locked(path, os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return None
        if file is None:
            return None
        try:
            _write(file, FILE_TYPE + box("free", json.dumps(facts).encode()))
        except OSError:
            path.unlink(missing_ok=True)
            file.close()
            raise
        return cls(path, file, facts)

    @classmethod
    def reopen(cls, path: Path) -> Self | None:
        """Go on with a file; None where another has it, or it is gone. Raises FilmError if it has no facts."""
        try:
            file = _locked(path)
        except FileNotFoundError:
            return None
        if file is None:
            return None
        try:
            return cls(path, file, read_facts(file, path))
        except BaseException:
            file.close()
            raise

    def append(self, chunk: Chunk, height: int, width: int) -> None:
        """Write a chunk, whichever frames it has. Raises FilmError if it is another encoder's."""
        moved = replace(chunk, first_frame=self.frames)
        fragments = Fragments(moved, height, width)
        if self._movie not in (None, fragments.movie):
            raise FilmError(f"the chunk at frame {chunk.first_frame} was made by another encoder")
        data = fragments.segment(moved)
        self._put(data if self._movie is not None else fragments.movie + data)
        self._movie, self.frames = fragments.movie, self.frames + len(chunk.units)

    def require_there(self) -> None:
        """Raise FileNotFoundError unless the file still has its name: what is written elsewhere nobody finds."""
        if not is_at(self._file, self.path):
            raise FileNotFoundError(2, "it has gone")

    def close(self) -> None:
        """Let the lock go: another writer may go on."""
        self._file.close()

    def _put(self, data: bytes) -> None:
        self.require_there()
        self._file.seek(self._end)
        try:
            _write(self._file, data)
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(data)

    def _look_through(self) -> None:
        """Find out what is whole, and cut the rest off."""
        moof = 0
        for found in boxes(self._file):
            if found.kind == b"moov":
                self._movie = self._read(found)
            elif found.kind == b"moof":
                moof = frames_of(self._read(found))
            elif found.kind == b"mdat":
                self.frames, moof, self._end = self.frames + moof, 0, found.end
            elif found.kind in (b"ftyp", b"free"):
                self._end = found.end
        if not self.frames:
            self._movie = None
        self._file.truncate(self._end)

    def _read(self, found: Box) -> bytes:
        self._file.seek(found.begin)
        return self._file.read(found.end - found.begin)


def read_facts(file: BinaryIO, path: Path) -> Facts:
    """The facts of a file. Raises FilmError if it has none."""
    found = next((one for one in boxes(file) if one.kind == b"free"), None)
    if found is not None and found.end - found.begin <= MAX_FACTS_BYTES:
        file.seek(found.begin + 8)
        try:
            facts = json.loads(file.read(found.end - found.begin - 8))
        except ValueError:
            facts = None
        if isinstance(facts, dict):
            return facts
    raise FilmError(f"{path} does not say what it is a recording of")


def _locked(path: Path, flags: int = 0) -> BinaryIO | None:
    """A file that is nobody else's; None where it is, or is not at its path any more."""
    file = os.fdopen(os.open(path, os.O_RDWR | flags, 0o644), "r+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    if not is_at(file, path):
        file.close()
        return None
    return file


def _write(file: BinaryIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
