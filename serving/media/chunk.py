"""Chunks: the encoded frames of one block, which go through every process and to every viewer as they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from engines.config.video_stream import Loop

FRAMES_PER_SECOND = 16
"""Of every chunk: the rate of the models, whatever pace a session is made at."""

RECENT_CHUNKS = 80
"""A minute of video."""

RECENT_BYTES = 32 << 20
"""A minute at 4 Mbit/s; more than that has fewer chunks."""


@dataclass(frozen=True)
class AccessUnit:
    """One encoded frame: H.264 in Annex B. A key frame carries its parameter sets."""

    data: bytes
    key: bool


class ChunkSpan(NamedTuple):
    """Where a chunk is in its session: in which take, from which frame on, and how many it has."""

    take: int
    first_frame: int
    frames: int

    @property
    def end_frame(self) -> int:
        """The frame behind the last."""
        return self.first_frame + self.frames


@dataclass(frozen=True)
class Chunk:
    """A closed group of pictures: the frames of `block`, from `first_frame` on. The first unit is the key.

    `pictures` are the ids of those that the frames were made of, one for each, and `loop` is how; both are empty
    where they were made of none.
    """

    block: int
    first_frame: int
    units: tuple[AccessUnit, ...]
    pictures: tuple[int, ...] = ()
    loop: Loop | None = None

    @property
    def end_frame(self) -> int:
        """The frame behind the last."""
        return self.first_frame + len(self.units)

    def span(self, take: int) -> ChunkSpan:
        """Where it is in a session, as a chunk of that take."""
        return ChunkSpan(take, self.first_frame, len(self.units))

    @property
    def nbytes(self) -> int:
        """Bytes of all units."""
        return sum(len(unit.data) for unit in self.units)


class RecentChunks:
    """The last chunks of a session, for viewers who come late: bounded in number and in bytes."""

    def __init__(self, most: int = RECENT_CHUNKS, most_bytes: int = RECENT_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._chunks: deque[Chunk] = deque()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Chunk]:
        """From old to new."""
        return iter(self._chunks)

    def append(self, chunk: Chunk) -> None:
        """One more; the oldest ones go where they are too many. It stays itself, however large."""
        self._chunks.append(chunk)
        self._nbytes += chunk.nbytes
        while len(self._chunks) > self._most or (self._nbytes > self._most_bytes and len(self._chunks) > 1):
            self._nbytes -= self._chunks.popleft().nbytes

    def extend(self, chunks: Iterable[Chunk]) -> None:
        """Several, from old to new."""
        for chunk in chunks:
            self.append(chunk)

    def clear(self) -> None:
        """Keep none of them."""
        self._chunks.clear()
        self._nbytes = 0

    def oldest_frame(self, next_frame: int) -> int:
        """The oldest frame that is here; `next_frame` where none is."""
        return self._chunks[0].first_frame if self._chunks else next_frame
