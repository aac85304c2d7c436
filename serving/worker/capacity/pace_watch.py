"""Whether a session is made at its pace, and if not, at which one it is."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

LOOKED_AT = 4
"""Blocks by which a pace is judged."""

MOST_LATE = 2
"""Of those; more are no accident."""

SLOWER = 0.95
"""A session that is made at this part of its pace, or more, is not called slow."""

CHANGED = 0.15
"""A pace that differs by more than this part from what was told is told anew."""


class _Block(NamedTuple):
    frames: int
    late: bool
    seconds: float


class PaceWatch:
    """Watches the blocks of one session, of which `fps` frames a second are to be shown; 0 is not watched."""

    def __init__(self, fps: int) -> None:
        self._fps = fps
        self._last: float | None = None
        self._blocks: deque[_Block] = deque(maxlen=LOOKED_AT)
        self._unsaid = 0
        self.held_fps: float | None = None

    def delivered(self, frames: int, now: float, *, late: bool) -> float | None:
        """A block has been sent. Returns the pace that is held where that is news: at last the session's own."""
        last, self._last = self._last, now
        if self._fps == 0 or last is None:
            return None
        self._blocks.append(_Block(frames, late, now - last))
        self._unsaid += 1
        if len(self._blocks) < LOOKED_AT:
            return None
        return self._slowed() if self.held_fps is None else self._changed(self.held_fps)

    def interrupted(self) -> None:
        """The session has been paused, resumed or reset: how long the next block takes says nothing."""
        self._last = None
        self._blocks.clear()

    def _slowed(self) -> float | None:
        pace = self._pace()
        if self._late <= MOST_LATE or pace >= SLOWER * self._fps:
            return None
        return self._told(pace)

    def _changed(self, told: float) -> float | None:
        if self._late == 0:
            self.held_fps = None
            return float(self._fps)
        pace = self._pace()
        catches_up = pace >= SLOWER * self._fps
        if catches_up or self._unsaid < LOOKED_AT or abs(pace - told) <= CHANGED * told:
            return None
        return self._told(pace)

    def _told(self, pace: float) -> float:
        self.held_fps, self._unsaid = pace, 0
        return pace

    @property
    def _late(self) -> int:
        return sum(block.late for block in self._blocks)

    def _pace(self) -> float:
        """At which the last blocks came."""
        seconds = max(sum(block.seconds for block in self._blocks), 1e-6)
        return min(sum(block.frames for block in self._blocks) / seconds, float(self._fps))
