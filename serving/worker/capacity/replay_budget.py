"""How much of a session's past may be made again for a client: for a fork, or out of a snapshot."""

from __future__ import annotations

from typing import NamedTuple

from engines.config.geometry import BlockLengths
from serving.errors import LimitReached

SAMPLE = 8
"""From the time that so many pieces took it follows how long all will take; the first are short, or slow."""

SPARE = 0.8
"""Of the budget, what is promised to fit: pieces take longer where others want the device."""


class Overrun(NamedTuple):
    """What the whole takes, in seconds, and how much of it would fit."""

    needed_s: float
    fitting: int


class WorkBudget:
    """So many `seconds` for `total` pieces of work. Times are those of a monotonic clock."""

    def __init__(self, seconds: float, total: int, now: float) -> None:
        self.seconds = seconds
        self.total = total
        self._began = now

    def left_s(self, now: float) -> float:
        """What is left of it, in seconds."""
        return max(0.0, self._began + self.seconds - now)

    def overrun(self, done: int, now: float) -> Overrun | None:
        """None unless the rest cannot be done in time; `done` pieces are."""
        if done == 0 or done >= self.total:
            return None
        took = now - self._began
        needed = took / done * self.total
        if took <= self.seconds and (done < SAMPLE or needed <= self.seconds):
            return None
        return Overrun(needed, min(int(SPARE * self.seconds / (took / done)), self.total - 1))


class ReplayBudget(WorkBudget):
    """For a fork at `frame`: all blocks before the one that has it."""

    def __init__(self, seconds: float, frame: int, blocks: int, lengths: BlockLengths, now: float) -> None:
        super().__init__(seconds, blocks, now)
        self._frame = frame
        self._lengths = lengths

    def check(self, done: int, now: float) -> None:
        """Raise LimitReached, with what would fit, where the rest cannot be done in time; `done` blocks are."""
        if (over := self.overrun(done, now)) is not None:
            raise LimitReached(
                f"a fork at frame {self._frame} generates {self.total} blocks again, in about "
                f"{over.needed_s:.0f} s; at most {self.seconds:g} s are spent on it: frames up to "
                f"{self._lengths.pixel_frames(over.fitting + 1) - 1} fit, and so does the present block, "
                "with no frame"
            )


class RestoreBudget(WorkBudget):
    """For a session out of a client's bytes: the steps of its prompts since one was last in force whole."""

    def check(self, done: int, now: float) -> None:
        """Raise LimitReached, with what would fit, where the rest cannot be done in time; `done` steps are."""
        if (over := self.overrun(done, now)) is not None:
            raise LimitReached(
                "the snapshot's last transitions run into each other: to encode the prompts of their "
                f"{self.total} steps takes about {over.needed_s:.0f} s, and at most {self.seconds:g} s are spent "
                f"on it; about {over.fitting} steps fit: save the session once a prompt has come into force whole"
            )
