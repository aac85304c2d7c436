"""Chunks in a file that grows by whole fragments, of which one process at a time is the writer."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from serving.errors import FilmError
from serving.media.chunk import Chunk
from serving.media.fmp4 import FILE_TYPE, Box, Fragments, boxes, frames_of, tag_box
from serving.media.whole_file import folder_beside, is_at, locked, put_in_place

MAX_TAG_BYTES = 1 << 16
"""Of a tag that a writer reads; players read longer ones."""


class Tag(NamedTuple):
    """What a file says of itself, where players find it under a name."""

    name: str
    text: str


class FragmentFile:
    """A fragmented MP4 whose first frame is at time 0: every chunk of it is whole once it has been appended.

    Its `tag`, if it has one, is in it from the beginning. Whoever has opened it holds its lock, which ends with
    the process. What the disk refuses raises OSError, and leaves the file as it was.
    """

    def __init__(self, path: Path, file: BinaryIO, tag: Tag | None) -> None:
        """A file that is locked and has nothing in it."""
        self.path, self.tag = path, tag
        self._file = file
        self._movie: bytes | None = None
        self.frames = self._end = 0
        self._head = FILE_TYPE + (b"" if tag is None else tag_box(*tag))

    @classmethod
    def create(cls, path: Path, tag: Tag | None = None) -> Self | None:
        """A new file; None where there is one of that name."""
        try:
            file = locked(path, os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return None
        return None if file is None else cls(path, file, tag)._begun()

    @classmethod
    def overwrite(cls, path: Path, tag: Tag | None = None) -> Self | None:
        """A new file, in place of one that nobody writes; None where somebody does.

        One that has a chunk in it stays until the first of this one is written.
        """
        if (file := locked(path, os.O_CREAT)) is None:
            return None
        made = cls(path, file, tag)
        return made if made.replaces else made._begun()

    @classmethod
    def reopen(cls, path: Path, name: str) -> Self | None:
        """Go on with a file; None where another has it, or it is gone. Raises FilmError without a tag `name`."""
        try:
            file = locked(path)
        except FileNotFoundError:
            return None
        if file is None:
            return None
        try:
            made = cls(path, file, Tag(name, read_tag(file, path, name)))
            made._look_through()
            return made
        except BaseException:
            file.close()
            raise

    @property
    def replaces(self) -> bool:
        """Whether an earlier file that can be played is still there, for no chunk of this one is."""
        return self._end == 0 and _has_fragments(self._file)

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

    def discard(self) -> None:
        """Remove the file; an earlier one, where it is still there, stays."""
        if not self.replaces:
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let the lock go: another writer may go on."""
        self._file.close()

    def _begun(self) -> Self:
        try:
            self._file.seek(0)
            self._file.truncate()
            _write(self._file, self._head)
        except OSError:
            self.path.unlink(missing_ok=True)
            self.close()
            raise
        self._end = len(self._head)
        return self

    def _put(self, data: bytes) -> None:
        self.require_there()
        if self.replaces:
            self._take_place(self._head + data)
            return
        self._file.seek(self._end)
        try:
            _write(self._file, data)
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(data)

    def _take_place(self, data: bytes) -> None:
        """Begin beside the earlier file, and go on in the place of that."""
        with folder_beside(self.path) as folder:
            place = folder / self.path.name
            file = locked(place, os.O_CREAT)
            assert file is not None
            try:
                _write(file, data)
                put_in_place(place, self.path)
            except BaseException:
                file.close()
                raise
        self._file.close()
        self._file, self._end = file, len(data)

    def _look_through(self) -> None:
        """Find out what is whole, and cut the rest off."""
        moof = b""
        with contextlib.suppress(FilmError):  # What was written last may be zeros after a power cut.
            for found in boxes(self._file):
                if found.kind == b"moov":
                    self._movie = _read(self._file, found)
                elif found.kind == b"moof":
                    moof = _read(self._file, found)
                elif found.kind == b"mdat":
                    self.frames += frames_of(moof, found.data_bytes)
                    self._end = found.end
                elif found.kind in (b"ftyp", b"meta"):
                    self._end = found.end
        if not self.frames:
            self._movie = None
        self._file.truncate(self._end)


def read_tag(file: BinaryIO, path: Path, name: str) -> str:
    """What a file says of itself. Raises FilmError if it has no such tag."""
    found = next((one for one in boxes(file) if one.kind == b"meta"), None)
    if found is not None and found.end - found.begin <= MAX_TAG_BYTES:
        text = _read(file, found)[len(tag_box(name, "")) :].decode(errors="replace")
        if tag_box(name, text) == _read(file, found):
            return text
    raise FilmError(f"{path} does not say what it is: it has no tag {name!r}")


def can_be_played(path: Path) -> bool:
    """Whether a file has something to show: one that was only begun has not. Raises OSError."""
    with path.open("rb") as file:
        return _has_fragments(file)


def cut_to_whole(path: Path) -> None:
    """Cut a file that nobody goes on writing behind its last whole fragment, where players want it to end."""
    with path.open("r+b") as file:
        file.truncate(max((found.end for found in boxes(file) if found.kind == b"mdat"), default=0))


def _has_fragments(file: BinaryIO) -> bool:
    return any(found.kind == b"mdat" for found in boxes(file))


def _read(file: BinaryIO, found: Box) -> bytes:
    file.seek(found.begin)
    return file.read(found.end - found.begin)


def _write(file: BinaryIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
