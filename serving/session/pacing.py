"""How fast a session is made: how far ahead of its viewer it may run, and when its next block is due."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engines.config.geometry import FRAMES_PER_SECOND, TEMPORAL_FACTOR, BlockLengths
from serving.errors import InvalidRequest
from serving.media.playout_clock import Clock

MAX_AHEAD_BLOCKS = 64
MAX_FPS = 60
UNREPORTED_BLOCKS = 32
"""How far an unpaced session runs for a viewer who reports nothing."""

FASTEST = 1.02
"""How much faster than ours a client's clock may run; blocks begin no faster in the long run."""

PATIENCE_S = 2.0
"""A session that waits for longer, and for longer than two of its blocks last, says for what."""


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise InvalidRequest(problem)


@dataclass(frozen=True)
class Pace:
    """Frames per second (0 for unpaced), blocks past the one that is shown, and how long a session waits alone."""

    fps: int = FRAMES_PER_SECOND
    ahead: int = 1
    lease_s: float = 60.0

    def patience_s(self, blocks: BlockLengths) -> float:
        """How long a session waits before it says for what: longer than from one block to the next."""
        block_s = TEMPORAL_FACTOR * blocks.later / self.fps if self.fps else 0.0
        return max(PATIENCE_S, 2 * block_s)

    def __post_init__(self) -> None:
        _require(0 <= self.fps <= MAX_FPS, f"fps is {self.fps}; it must be within 0..{MAX_FPS}, 0 being unpaced")
        _require(
            1 <= self.ahead <= MAX_AHEAD_BLOCKS, f"ahead is {self.ahead}; it must be within 1..{MAX_AHEAD_BLOCKS}"
        )
        _require(1 <= self.lease_s <= 3600, f"lease is {self.lease_s:g} s; it must be within 1..3600 s")


class BeginLimit:
    """The earliest moment at which the next block may begin, whatever a client says: blocks begin no faster than
    they last, but for those that last `ahead_s` together.
    """

    def __init__(self, ahead_s: float) -> None:
        self._ahead_s = ahead_s
        self.at = -math.inf

    def begun(self, now: float, lasts_s: float) -> None:
        """A block has begun that lasts so long."""
        self.at = max(self.at, now - self._ahead_s) + lasts_s / FASTEST


class Position:
    """What a session's viewer has seen: what was reported, or else what a clock says. Frames of one take."""

    def __init__(self, pace: Pace, frame: int = 0) -> None:
        self._pace = pace
        self._clock = Clock(max(pace.fps, 1), frame)
        self._reported: tuple[int, float] | None = None
        self._runs = False

    @property
    def is_reported(self) -> bool:
        """Whether somebody says what was seen."""
        return self._reported is not None

    def shown(self, delivered: int, now: float) -> int:
        """The last frame shown of the first `delivered` ones, as far as is known; -1 before the first."""
        seen = int(self._clock.at(now)) if self._reported is None else self._reported[0]
        return min(delivered - 1, seen)

    def seen(self, delivered: int, now: float) -> int:
        """The same, but where nobody reports and no clock runs the last frame that a viewer can have seen."""
        return delivered - 1 if self._is_unknown else self.shown(delivered, now)

    def last_block(self, delivered: int, blocks: BlockLengths, now: float) -> int:
        """The last block that may be begun, by what is known to have been shown of `delivered` frames."""
        shown_block = blocks.block_at(max(self.shown(delivered, now), 0) + 1) - 1
        return shown_block + (UNREPORTED_BLOCKS if self._is_unknown else self._pace.ahead)

    @property
    def _is_unknown(self) -> bool:
        return self._pace.fps == 0 and self._reported is None

    def expects(self, frame: int) -> float | None:
        """When `frame` is to be on screen; None where nothing is known of it."""
        if self._pace.fps == 0 or not self._runs:
            return None
        if self._reported is not None:
            return self._reported[1] + (frame - self._reported[0]) / self._pace.fps
        return self._clock.reaches(frame)

    def report(self, frame: int, now: float) -> None:
        """The viewer has seen `frame`; one that was reported, or one before it, is old news."""
        if self._reported is None or frame > self._reported[0]:
            self._reported = (frame, now)

    def reports_end(self, now: float) -> None:
        """Nobody reports any more: the clock goes on from there."""
        if self._reported is not None:
            self._clock.set(self._reported[0], now)
            self._reported = None

    def go_on_from(self, frame: int, now: float) -> None:
        """The viewer is at `frame`, whatever was said before."""
        self._clock.set(frame, now)
        if self._reported is not None:
            self._reported = (frame, now)

    def run(self, runs: bool, now: float) -> None:
        """Let the clock run, or stand."""
        if runs and not self._runs and self._reported is not None:
            self._reported = (self._reported[0], now)
        self._runs = runs
        if runs and self._pace.fps:
            self._clock.run(now)
        else:
            self._clock.stop(now)

    def late(self, frame: int, now: float) -> None:
        """A block that begins with `frame` came too late: the clock waits for it."""
        if self._reported is None and self._clock.at(now) > frame:
            self._clock.set(frame, now)
