"""A film on disk: MP4 with H.264 at the stream's 16 frames per second, written while it is made."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import av
from torch import Tensor

from serving.errors import FilmError
from serving.media.encoder import ChunkEncoder
from serving.media.film_file import FACTS_TAG, FilmFacts, FilmFile, Made


class Film:
    """A film of pictures. Each chunk of them is a closed group of pictures that begins with a key frame.

    It is written as a `FilmFile`, and raises what that does.
    """

    def __init__(self, path: Path, height: int, width: int, facts: FilmFacts | None = None) -> None:
        self._encoder = ChunkEncoder(height, width)
        self._file = FilmFile(path, height, width, facts)
        self._chunks = 0

    @property
    def frames(self) -> int:
        """How many have been written."""
        return self._file.frames

    def append(self, pictures: Tensor) -> None:
        """Encode and write a chunk, [frames, height, width, 3] uint8 on the CPU."""
        self._file.append(self._encoder.encode(self._chunks, self.frames, pictures.numpy()))
        self._chunks += 1

    def close(self, *, complete: bool = False) -> Made:
        """Give the film its name; without a picture, leave what was there before."""
        return self._file.close(complete=complete)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, traceback)


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
