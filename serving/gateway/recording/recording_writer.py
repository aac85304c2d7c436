"""A recording being written: its chunks in a part file, and an ordinary MP4 once it is finished."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import av

from serving.errors import FilmError, LimitReached, WrongState
from serving.media.chunk import Chunk
from serving.media.fragment_file import FragmentFile
from serving.media.ordinary_mp4 import make_ordinary
from serving.media.whole_file import put_in_place

logger = logging.getLogger(__name__)

RECORDING_TAG = "longtake-recording"
"""The metadata tag that holds the facts of a recording."""


@dataclass(frozen=True)
class Recording:
    """A video file on the server. `nbytes` and `finished_at`, in Unix time, are 0 until it can be read."""

    name: str
    session_id: str
    first_frame: int
    frames: int = 0
    nbytes: int = 0
    finished_at: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether it can be read."""
        return self.finished_at > 0


@dataclass(frozen=True)
class RecordingFacts:
    """What a recording says of itself: which frames it is of, and, while it is written, which request began it."""

    session_id: str
    take: int
    first_frame: int
    height: int
    width: int
    asked_by: str = ""

    @classmethod
    def of(cls, text: str, path: Path) -> Self:
        """Raises FilmError if they are not all there."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise FilmError(f"{path} does not say what it is a recording of: {error}") from error

    @property
    def text(self) -> str:
        """As files have them."""
        return json.dumps(asdict(self))

    @property
    def finished(self) -> Self:
        """As whoever gets the finished recording may have them."""
        return replace(self, asked_by="")


class RecordingWriter:
    """Writes a recording, until `finish`; no other process does meanwhile.

    What the disk refuses is LimitReached: nothing of a chunk that is refused is written, and what is whole stays.
    To let the file go waits for what another thread is writing.
    """

    def __init__(self, file: FragmentFile, finished: Path) -> None:
        """Go on with a part file. Raises FilmError if it is none of ours."""
        self.facts = RecordingFacts.of("" if file.tag is None else file.tag.text, file.path)
        self._file, self._finished = file, finished
        self._writing = threading.Lock()
        self._ended: Recording | None = None

    @property
    def name(self) -> str:
        """Of the recording."""
        return self._finished.stem

    @property
    def recording(self) -> Recording:
        """How far it is, or how it ended."""
        facts = self.facts
        return self._ended or Recording(self.name, facts.session_id, facts.first_frame, self._file.frames)

    @property
    def next_frame(self) -> int:
        """The frame that the next chunk begins with."""
        return self.facts.first_frame + self._file.frames

    def append(self, chunk: Chunk) -> None:
        """Write the chunk that follows. Raises FilmError if it is another one."""
        if self._ended is not None:
            raise WrongState(f"the recording {self.name} has ended; begin another")
        if (first := chunk.first_frame) != self.next_frame:
            raise FilmError(f"{self.name} goes on with frame {self.next_frame}; the chunk begins at {first}")
        with self._writing, refusing(self._file.path):
            self._file.append(chunk, self.facts.height, self.facts.width)

    def finish(self) -> Recording:
        """Complete the file, unless it has ended; one without a frame is removed, and is then not `finished`."""
        if self._ended is None:
            with self._writing, refusing(self._file.path), contextlib.closing(self._file):
                self._file.require_there()
                self._ended = self._completed() if self._file.frames else self._removed()
        return self._ended

    def discard(self) -> None:
        """Remove what there is: the recording was not to be."""
        with self._writing, contextlib.closing(self._file):
            self._ended = self._removed()

    def release(self) -> None:
        """Leave it to another writer, who goes on with it or finishes it."""
        with self._writing:
            self._file.close()

    def _removed(self) -> Recording:
        recording = self.recording
        self._file.path.unlink(missing_ok=True)
        return recording

    def _completed(self) -> Recording:
        """Beside the part file, so that nobody sees less than the whole."""
        if not self._finished.exists():
            whole = self._finished.with_suffix(".mp4.new")
            try:
                tags = {RECORDING_TAG: self.facts.finished.text}
                make_ordinary(self._file.path, whole, self._file.frames, tags)
            except (OSError, av.FFmpegError) as error:
                # There is no room for a second copy: the fragments are all there, and players play them.
                logger.warning("left in fragments", extra={"recording": self.name, "why": str(error)})
                whole.unlink(missing_ok=True)
                self._file.path.rename(self._finished)
            else:
                put_in_place(whole, self._finished)
        self._file.path.unlink(missing_ok=True)
        found = self._finished.stat()
        return replace(self.recording, nbytes=found.st_size, finished_at=found.st_mtime)


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into a LimitReached that names the file, but not where the server keeps it."""
    try:
        yield
    except (FilmError, OSError) as error:
        cause = error.__cause__ if isinstance(error, FilmError) else error
        if not isinstance(cause, OSError | av.FFmpegError):
            raise
        raise LimitReached(f"the server cannot write {path.name}: {cause.strerror}") from error
