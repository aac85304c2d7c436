"""The cues of a session that have not applied yet, by frame."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable

from engines.config.geometry import BlockLengths
from serving.errors import FrameOutOfRange, LimitReached
from serving.session.types import CommandKind, Pending, Receipt, Stage
from serving.timeline.cue import LAST_FRAME

MAX_PENDING = 10_000
"""Cues that may wait at a time; those that have applied do not count."""


class CueQueue:
    """At most one cue a frame, and MAX_PENDING of them; each lands on the first block at or after its frame."""

    def __init__(self, blocks: BlockLengths, cues: Iterable[Pending] = ()) -> None:
        self._blocks = blocks
        self._by_frame = {pending.cue.frame: pending for pending in cues}
        self._frames = sorted(self._by_frame)
        self._listed: tuple[Pending, ...] | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def __contains__(self, frame: int) -> bool:
        return frame in self._by_frame

    @property
    def listed(self) -> tuple[Pending, ...]:
        """All of them, by frame."""
        if self._listed is None:
            self._listed = tuple(self._by_frame[frame] for frame in self._frames)
        return self._listed

    def get(self, frame: int) -> Pending | None:
        """The cue at exactly `frame`."""
        return self._by_frame.get(frame)

    def require_room(self, frame: int) -> None:
        """Raise LimitReached if there is no room for a cue at `frame`; over another one there always is."""
        if frame not in self._by_frame and len(self._frames) >= MAX_PENDING:
            raise LimitReached(f"{MAX_PENDING} cues are pending, which is all that may be; remove one or wait")

    def require_ahead(self, frame: int, next_block: int) -> None:
        """Raise FrameOutOfRange for a frame that is over, or never reached."""
        if frame > LAST_FRAME:
            raise FrameOutOfRange(f"frame {frame} is never reached; the last possible one is {LAST_FRAME}")
        if self._blocks.block_at(frame) < next_block:
            earliest = self._blocks.pixel_frames(next_block)
            raise FrameOutOfRange(f"frame {frame} is over; the earliest possible frame is {earliest}")

    def put(self, pending: Pending) -> None:
        """Put a cue in, over one that is on its frame."""
        frame = pending.cue.frame
        if frame not in self._by_frame:
            insort(self._frames, frame)
        self._by_frame[frame] = pending
        self._listed = None

    def take_out(self, frame: int) -> Pending:
        """The cue at `frame`, which is there, and is no longer."""
        del self._frames[bisect_left(self._frames, frame)]
        self._listed = None
        return self._by_frame.pop(frame)

    def landing(self, block: int) -> list[Pending]:
        """The cues that land on `block`, or should have on one before it."""
        end = bisect_right(self._frames, self._blocks.pixel_frames(block))
        return [self._by_frame[frame] for frame in self._frames[:end]]

    def first_frames(self, count: int) -> list[int]:
        """Where the first cues are."""
        return self._frames[:count]

    def applies_at(self, frame: int) -> int:
        """Where a cue scheduled at `frame` would apply."""
        return self._blocks.pixel_frames(self._blocks.block_at(frame))

    def dropped(self, cues: Iterable[Pending]) -> tuple[Receipt, ...]:
        """The receipts of cues that will never apply."""
        kind = CommandKind.SCHEDULE_PROMPT
        return tuple(
            Receipt(found.command_id, kind, Stage.DROPPED, self.applies_at(found.cue.frame), found.cue.frame)
            for found in cues
        )
