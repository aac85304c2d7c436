"""How much of a session's past may be generated again for a fork."""

from __future__ import annotations

from engines.config.geometry import BlockLengths
from serving.errors import LimitReached

SAMPLE_BLOCKS = 8
"""From the time that so many blocks took it follows how long all will take; the first are short, or slow."""

SPARE = 0.8
"""Of the budget, what is promised to fit: blocks take longer where others want theirs."""


class ReplayBudget:
    """So many `seconds` for all blocks before the one with `frame`. Times are those of a monotonic clock."""

    def __init__(self, seconds: float, frame: int, blocks: int, lengths: BlockLengths, now: float) -> None:
        self._seconds = seconds
        self._frame = frame
        self._blocks = blocks
        self._lengths = lengths
        self._began = now

    def left_s(self, now: float) -> float:
        """What is left of it, in seconds."""
        return max(0.0, self._began + self._seconds - now)

    def check(self, done: int, now: float) -> None:
        """Raise LimitReached, with what would fit, where the rest cannot be done in time; `done` blocks are."""
        if done == 0 or done >= self._blocks:
            return
        took = now - self._began
        needed = took / done * self._blocks
        if took > self._seconds or (done >= SAMPLE_BLOCKS and needed > self._seconds):
            fitting = min(int(SPARE * self._seconds / (took / done)), self._blocks - 1)
            raise LimitReached(
                f"a fork at frame {self._frame} generates {self._blocks} blocks again, in about {needed:.0f} s; "
                f"at most {self._seconds:g} s are spent on it: frames up to "
                f"{self._lengths.pixel_frames(fitting + 1) - 1} fit, and so does the present block, with no frame"
            )
