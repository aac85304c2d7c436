"""Chunks: the encoded frames of one block, which go through every process and to every viewer as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

FRAMES_PER_SECOND = 16
"""Of every chunk: the rate of the models, whatever pace a session is made at."""


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

    `pictures` are the ids of those that the frames were made of, one for each; empty where they were made of none.
    """

    block: int
    first_frame: int
    units: tuple[AccessUnit, ...]
    pictures: tuple[int, ...] = ()

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
