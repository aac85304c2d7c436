"""Recordings: chunks of a session in MP4 files on the server, all in one folder."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av

from serving.errors import FilmError, InvalidRequest, LimitReached, SessionNotFound, WrongState
from serving.media.chunk import Chunk
from serving.media.mp4_writer import Mp4, cut_to_whole, finish, writing

PIECE_BYTES = 256 * 1024

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,99}")
_SESSION_TAG, _FIRST_FRAME_TAG = "longtake-session", "longtake-first-frame"


@dataclass(frozen=True)
class Recording:
    """A video file on the server. `nbytes` is 0 until it is `finished`, which is when it can be read."""

    name: str
    session_id: str
    first_frame: int
    frames: int = 0
    nbytes: int = 0
    finished: bool = False


class RecordingStore:
    """The recordings in `folder`, which is made. Every process that can see the folder sees the same ones.

    Raises FilmError if there can be no such folder. All that writes raises LimitReached where the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def begin(self, session_id: str, height: int, width: int, first_frame: int) -> RecordingWriter:
        """A new recording, whose first chunk begins at `first_frame`."""
        for number in itertools.count(1):
            name = f"{session_id}-{number}"
            if self._take(name):
                begun = Recording(name, session_id, first_frame)
                return RecordingWriter(begun, self._finished(name), self._unfinished(name), height, width)
        raise AssertionError("numbers do not end")

    def names(self) -> list[str]:
        """Those that can be read, the oldest first."""
        files = sorted(self._folder.glob("*.mp4"), key=lambda path: path.stat().st_mtime)
        return [path.stem for path in files]

    def path(self, name: str) -> Path:
        """Where a finished recording lies. Raises InvalidRequest, SessionNotFound, or WrongState until it is."""
        path = self._finished(name)
        if path.is_file():
            return path
        if self._unfinished(name).is_file():
            raise WrongState(f"the recording {name} is still being written; stop it first")
        raise SessionNotFound(f"there is no recording {name}")

    def find(self, name: str) -> Recording:
        """What a finished recording is; raises as `path`, and FilmError if the file is none of ours."""
        return _facts(self.path(name))

    def read(self, name: str) -> Iterator[bytes]:
        """The bytes of a finished recording, in pieces of 256 KiB and a rest; raises as `path`, at once."""
        return _pieces(self.path(name))

    def salvage(self, name: str) -> None:
        """Finish what a writer that died has left, as it is. A recording of which nothing is whole is removed."""
        _salvage(self._unfinished(name), self._finished(name))

    def _take(self, name: str) -> bool:
        """Whether a name was free, and is ours now."""
        part = self._unfinished(name)
        with _refusing(part):
            try:
                part.touch(exist_ok=False)
            except FileExistsError:
                return False
        # Only now: a writer that has just finished has left the other name.
        if self._finished(name).exists():
            part.unlink()
            return False
        return True

    def _finished(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"{name[:100]!r} is no name of a recording; StartRecording gives them")
        return self._folder / f"{name}.mp4"

    def _unfinished(self, name: str) -> Path:
        return self._finished(name).with_suffix(".mp4.part")


class RecordingWriter:
    """A recording being written. Where the disk refuses, it ends with LimitReached; what is whole can be read."""

    def __init__(self, begun: Recording, finished: Path, unfinished: Path, height: int, width: int) -> None:
        self._begun, self._finished, self._unfinished = begun, finished, unfinished
        self._ended: Recording | None = None
        tags = {_SESSION_TAG: begun.session_id, _FIRST_FRAME_TAG: str(begun.first_frame)}
        with _refusing(unfinished):
            self._file = Mp4(unfinished, height, width, begun.first_frame, tags)

    @property
    def recording(self) -> Recording:
        """How far it is, or how it ended."""
        return self._ended or replace(self._begun, frames=self._file.frames)

    def append(self, chunk: Chunk) -> None:
        """Write the chunk that follows, and wait for the disk. Raises FilmError if it is another one."""
        if self._ended is not None:
            raise WrongState(f"the recording {self._begun.name} has ended; begin another")
        with self._sparing():
            self._file.append(chunk)

    def finish(self) -> Recording:
        """Complete the file, unless it has ended; one without a frame is removed, and is then not `finished`."""
        if self._ended is None:
            with self._sparing():
                self._file.close()
                self._ended = self._begun if self._file.frames == 0 else self._renamed()
        return self._ended

    def abandon(self) -> None:
        """End without completing the file: its whole chunks can be read."""
        self._file.abandon()
        _salvage(self._unfinished, self._finished)
        self._ended = _facts(self._finished) if self._finished.exists() else self._begun

    def _renamed(self) -> Recording:
        finish(self._unfinished, self._finished)
        return replace(self.recording, nbytes=self._finished.stat().st_size, finished=True)

    @contextlib.contextmanager
    def _sparing(self) -> Iterator[None]:
        try:
            with _refusing(self._unfinished):
                yield
        except LimitReached:
            self.abandon()
            raise


def _facts(path: Path) -> Recording:
    try:
        with av.open(str(path), "r") as container:
            frames = sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)
            session_id, first_frame = (container.metadata[tag] for tag in (_SESSION_TAG, _FIRST_FRAME_TAG))
        return Recording(path.stem, session_id, int(first_frame), frames, path.stat().st_size, finished=True)
    except (av.FFmpegError, LookupError, ValueError) as error:
        raise FilmError(f"{path} is not a recording that Longtake made: {error}") from error


def _salvage(unfinished: Path, finished: Path) -> None:
    with _refusing(unfinished):
        cut_to_whole(unfinished)
        if unfinished.stat().st_size == 0:
            unfinished.unlink()
        else:
            finish(unfinished, finished)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into a LimitReached that names the file, but not where the server keeps it."""
    try:
        yield
    except (FilmError, OSError) as error:
        cause = error.__cause__ if isinstance(error, FilmError) else error
        if not isinstance(cause, OSError | av.FFmpegError):
            raise
        raise LimitReached(f"the server cannot write {path.name}: {cause.strerror}") from error
