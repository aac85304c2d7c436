"""A film on disk: MP4 with H.264 at the stream's 16 frames per second, written while it is made."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

import av
from torch import Tensor

from serving.errors import FilmError
from serving.media.encoder import ChunkEncoder
from serving.media.mp4_writer import Mp4

FACTS_TAG = "longtake"
"""The metadata tag that holds the facts of a film."""


class Film:
    """An MP4 file being written. Each chunk is a closed group of pictures that begins with a key frame.

    `facts`, a text, goes into the file's metadata, where `read_facts` finds it. Every method raises FilmError
    where the file cannot be written.
    """

    def __init__(self, path: Path, height: int, width: int, facts: str | None = None) -> None:
        self._encoder = ChunkEncoder(height, width)
        self._file = Mp4(path, height, width, 0, {} if facts is None else {FACTS_TAG: facts})
        self._chunks = 0

    @property
    def frames(self) -> int:
        """How many have been written."""
        return self._file.frames

    def append(self, pictures: Tensor) -> None:
        """Encode and write a chunk, [frames, height, width, 3] uint8 on the CPU."""
        self._file.append(self._encoder.encode(self._chunks, self.frames, pictures.numpy()))
        self._chunks += 1

    def close(self) -> None:
        """Finish the file; one without a picture is taken away."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What broke the film says more than that it cannot be finished either.
        with contextlib.suppress(FilmError) if isinstance(error, FilmError) else contextlib.nullcontext():
            self.close()


def read_facts(path: Path) -> str:
    """The facts in a film's metadata. Raises FilmError if it is no film, or none of Longtake's."""
    try:
        with av.open(str(path)) as container:
            facts = container.metadata.get(FACTS_TAG)
    except (av.FFmpegError, OSError) as error:
        raise FilmError(f"{path} is not a film that can be read: {error.strerror}") from error
    if facts is None:
        raise FilmError(f"{path} has no facts in it; only a film that `longtake generate` made can be made again")
    return facts
