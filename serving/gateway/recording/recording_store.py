"""The recordings of one caller: MP4 files in a folder, those that are written beside those that can be read."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av

from serving.errors import FilmError, InvalidRequest, LimitReached, SessionNotFound, WrongState
from serving.gateway.recording.recording_writer import (
    RECORDING_TAG,
    Recording,
    RecordingFacts,
    RecordingWriter,
    refusing,
)
from serving.media.fragment_file import FragmentFile, Tag, cut_to_whole, read_tag
from serving.media.ordinary_mp4 import writing

logger = logging.getLogger(__name__)

PIECE_BYTES = 256 * 1024

LEAST_BYTES = 1 << 20
"""That a recording counts for where those of a caller are bounded: many small ones are many files."""

DESCRIBED = 4096
"""Finished recordings whose content is remembered: to list them is not to open them all."""

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,99}")
_FINISHED, _PART = ".mp4", ".mp4.part"


class Finished(NamedTuple):
    """A recording that can be read, and when it was finished in Unix nanoseconds."""

    finished_ns: int
    name: str


class RecordingStore:
    """The recordings in `folder`, which is made, and made again by `begin` where it has gone meanwhile.

    Every process that can see the folder sees the same ones. Raises FilmError if there can be no such folder. All
    that writes raises LimitReached where the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told: set[Path] = set()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def begin(
        self, session_id: str, height: int, width: int, first_frame: int, take: int = 0, asked_by: str = ""
    ) -> RecordingWriter:
        """A new recording, whose first chunk begins at `first_frame`; `asked_by` names the request for it."""
        facts = RecordingFacts(session_id, take, first_frame, height, width, asked_by)
        tag = Tag(RECORDING_TAG, facts.text)
        with refusing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            finished = self._finished(f"{session_id}-{number}")
            part = finished.with_suffix(_PART)
            with refusing(part):
                file = None if finished.exists() else FragmentFile.create(part, tag)
            if file is None:
                continue
            writer = RecordingWriter(file, finished)
            # Only now: a writer that has just finished has left the other name.
            if not finished.exists():
                return writer
            writer.discard()
        raise AssertionError("numbers do not end")

    def require_room(self, most_bytes: int) -> None:
        """Raise LimitReached where the recordings that are there, or are being written, have `most_bytes`."""
        held = 0
        for path in (*self._folder.glob(f"*{_FINISHED}"), *self._folder.glob(f"*{_PART}")):
            with contextlib.suppress(FileNotFoundError):  # It has been deleted or finished just now.
                held += max(path.stat().st_size, LEAST_BYTES)
        if held >= most_bytes:
            raise LimitReached(f"your recordings take {held} bytes of {most_bytes} that they may; delete some")

    def finished(self) -> list[Finished]:
        """Those that can be read, the oldest first."""
        found = []
        for path in self._folder.glob(f"*{_FINISHED}"):
            with contextlib.suppress(FileNotFoundError):  # It has been deleted just now.
                if _NAME.fullmatch(path.stem):
                    found.append(Finished(path.stat().st_mtime_ns, path.stem))
        return sorted(found)

    def path(self, name: str) -> Path:
        """Where a finished recording lies. Raises InvalidRequest, SessionNotFound, or WrongState until it is."""
        path = self._finished(name)
        # In this order: one that is finished meanwhile is seen as the one or as the other.
        is_written = path.with_suffix(_PART).is_file()
        if path.is_file():
            return path
        if is_written:
            raise WrongState(f"the recording {name} is still being written; stop it first")
        raise SessionNotFound(f"there is no recording {name}")

    def find(self, name: str) -> Recording:
        """What a finished recording is; raises as `path`, and FilmError if the file is none of ours."""
        return _recording(self.path(name))

    def read(self, name: str) -> Iterator[bytes]:
        """The bytes of a finished recording, in pieces of 256 KiB and a rest; raises as `path`, at once."""
        return _pieces(self.path(name))

    def delete(self, name: str) -> None:
        """Remove a finished recording; raises as `path`. Whoever is reading it reads to its end."""
        path = self.path(name)
        with refusing(path):
            path.unlink(missing_ok=True)

    def first_frame(self, name: str) -> int:
        """With which frame a recording begins that is being written. Raises SessionNotFound."""
        part = self._finished(name).with_suffix(_PART)
        try:
            with part.open("rb") as file:
                return RecordingFacts.of(read_tag(file, part, RECORDING_TAG), part).first_frame
        except (FileNotFoundError, FilmError) as error:
            raise SessionNotFound(f"there is no recording {name}") from error

    def left_behind(self) -> list[RecordingWriter]:
        """The recordings whose writer is gone, to be gone on with. What does not say what it is, is salvaged.

        A file with which nothing can be done is told once, and is in no other's way.
        """
        parts = set(self._folder.glob(f"*{_PART}"))
        self._told &= parts
        return [writer for part in sorted(parts) if (writer := self._tried(part)) is not None]

    def _tried(self, part: Path) -> RecordingWriter | None:
        try:
            return _taken_over(part)
        except Exception as error:
            if part not in self._told:
                self._told.add(part)
                extra = {"recording": part.name, "why": str(error)}
                logger.warning("recording not looked after", extra=extra, exc_info=error)
        return None

    def _finished(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"{name[:100]!r} is no name of a recording; StartRecording gives them")
        return self._folder / f"{name}{_FINISHED}"


def callers_with_parts(folder: Path) -> set[str]:
    """Who has recordings in `folder` that are not finished, whether they are still let in or not."""
    parts = itertools.chain(folder.glob(f"*{_PART}"), folder.glob(f"*/*{_PART}"))
    return {part.parent.relative_to(folder).name for part in parts if _is_ours(part)}


def _is_ours(part: Path) -> bool:
    try:
        with part.open("rb") as file:
            return bool(read_tag(file, part, RECORDING_TAG))
    except (FilmError, OSError):
        return False


def _recording(path: Path) -> Recording:
    found = path.stat()
    facts, frames = _content(path, found.st_mtime_ns, found.st_size)
    return Recording(path.stem, facts.session_id, facts.first_frame, frames, found.st_size, found.st_mtime)


@lru_cache(DESCRIBED)
def _content(path: Path, changed_ns: int, size: int) -> tuple[RecordingFacts, int]:
    """What a finished recording says of itself, and how many frames it has; of one that is unchanged read once."""
    try:
        with av.open(str(path), "r") as container:
            video = container.streams.video[0]
            # What was left in fragments does not say how many there are.
            frames = video.frames or sum(1 for packet in container.demux(video) if packet.size)
            return RecordingFacts.of(container.metadata[RECORDING_TAG], path), frames
    except (av.FFmpegError, LookupError, FilmError) as error:
        raise FilmError(f"{path} is not a recording that Longtake made: {error}") from error


def _taken_over(part: Path) -> RecordingWriter | None:
    """Its writer; None where another process has it, or it is finished as it is."""
    finished = part.with_suffix("")
    try:
        file = FragmentFile.reopen(part, RECORDING_TAG)
        return None if file is None else RecordingWriter(file, finished)
    except FilmError as error:
        logger.warning("recording salvaged", extra={"recording": finished.stem, "why": str(error)})
        _salvage(part, finished)
    return None


def _salvage(part: Path, finished: Path) -> None:
    """Finish a file as it is, behind its last whole fragment."""
    with refusing(part), contextlib.suppress(FileNotFoundError):  # Another process was faster.
        cut_to_whole(part)
        if part.stat().st_size == 0 or finished.exists():
            part.unlink()
        else:
            part.rename(finished)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
