"""StreamDiffusionV2's window: which slots a pass takes is chosen on the device, and all else known before.

In every layer a queue holds the ends of the slots that are to be overwritten next: see
`kernels.slot_choice.slot_queue`. How full the window is does not depend on it, nor where in the stream it is: that
is what is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engines.config.video_stream import VideoStreamConfig


class Lane(NamedTuple):
    """How far a window is: a value, replaced after each pass over it.

    Args:
        seen: the position after the last frame written.
        filled: slots that are attended.
        writes: passes that have written into it, each of which has left a record of its queue.
        left: passes that go by, where several share one window, before the queue moves on.

    """

    seen: int = 0
    filled: int = 0
    writes: int = 0
    left: int = 1


class LaneWrite(NamedTuple):
    """What a pass does to a window, as far as it is known before.

    `read` and `write` are records of the window's queue. The pass attends `filled` slots. The rest is what
    `kernels.slot_choice.slot_queue.QueueStep` says.
    """

    read: int
    write: int
    stamp: int
    full: bool
    pop: bool
    end: int
    append: int
    test: bool
    filled: int


class Placed(NamedTuple):
    """What a pass does to a window, and how far that is afterwards."""

    write: LaneWrite
    after: Lane


@dataclass(frozen=True)
class RollingWindow:
    """A window of `frames`, of which the first `sink` are tested against `threshold`, unless that is None.

    Its queue has so many `records`, which passes read and write in turn.
    """

    frames: int
    sink: int
    threshold: float | None
    records: int

    @classmethod
    def of(cls, config: VideoStreamConfig) -> RollingWindow:
        """That of a stream. A plain block can be begun again after any of its steps: each keeps what it read."""
        threshold = config.sink_threshold if config.sink_frames > 0 else None
        return cls(config.window_frames, config.sink_frames, threshold, len(config.steps) + 1)

    @property
    def raw_frames(self) -> int:
        """Keys stay where they were rotated to."""
        return 0

    @property
    def mean_frames(self) -> int:
        """Slots whose mean keys and values are kept."""
        return 0 if self.threshold is None else self.sink

    def next_position(self, position: int, refresh_at: int) -> int:
        """Where a block begins that would at `position`: from `refresh_at` on at the window's last place again."""
        return self.frames - 1 if position >= refresh_at else position

    def place(self, lane: Lane, position: int, frames: int, passes: int = 1) -> Placed:
        """A pass over new frames from `position` on.

        `passes` of them share the window: in a full one the queue moves on with the last of them alone
        (streamdiffusionv2.md, section 6).
        """
        end = position + frames
        stamp = lane.writes + 1
        records = lane.writes % self.records, stamp % self.records
        test = self.threshold is not None and frames == 1
        if end > self.frames or lane.filled >= self.frames:
            pop = passes == 1 or lane.left <= 1
            left = passes if pop else lane.left - 1
            write = LaneWrite(*records, stamp, True, pop, 0, 0, test, self.frames)
            return Placed(write, Lane(end, self.frames, stamp, left))
        filled = lane.filled + end - lane.seen
        following = end + frames
        append = following if self.sink < following <= self.frames else 0
        write = LaneWrite(*records, stamp, False, False, filled, append, test, filled)
        return Placed(write, Lane(end, filled, stamp, lane.left))
