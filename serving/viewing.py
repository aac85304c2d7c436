"""What a viewer has of a session, and what comes next: so that no frame is missing, and none comes twice."""

from __future__ import annotations

import math
from enum import Enum

from serving.pb.longtake.v1 import sessions_pb2 as pb

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0


class Verdict(Enum):
    """Of an event: it is to be passed on, it was before, or something before it is missing."""

    NEWS = "news"
    OLD = "old"
    HOLE = "hole"


class Viewing:
    """Judges the events of a session's streams, one after the other. Frames are those of the present take.

    `next_frame` is the one that is needed next, and None until the first event of a viewer who takes what comes.
    """

    def __init__(self, from_frame: int | None) -> None:
        self.take: int | None = None
        self.next_frame = from_frame
        self._reopened = False

    def reopen(self) -> int | None:
        """A stream begins: the frame to ask for."""
        self._reopened = self.next_frame not in (None, 0)
        return self.next_frame

    def judge(self, event: pb.Event) -> Verdict:
        """Whether an event is to be passed on. After a hole the stream is to be opened again."""
        if self.take is not None and event.take < self.take:
            return Verdict.OLD
        if self._begins_take(event.take) and self._reopened:
            # What was asked for is a frame of the take before.
            return Verdict.HOLE
        self._reopened = False
        match event.WhichOneof("event"):
            case "chunk":
                return self._judge_chunk(event.chunk)
            case "state" if self.next_frame is None:
                self.next_frame = event.state.current_start_frame
            case "gap":
                self.next_frame = event.gap.first_frame + event.gap.frames
        return Verdict.NEWS

    def skip_to(self, session: pb.Session) -> pb.Event | None:
        """Give up what `session` does not keep any more: the gap that it leaves, None where nothing is lost."""
        self._begins_take(session.take)
        first = self.next_frame or 0
        if session.oldest_frame <= first:
            return None
        self.next_frame = session.oldest_frame
        gap = pb.Gap(first_frame=first, frames=session.oldest_frame - first)
        return pb.Event(take=session.take, gap=gap)

    def _begins_take(self, take: int) -> bool:
        """Whether the session has been reset since the last event."""
        before, self.take = self.take, take
        if before is None or before == take:
            return False
        self.next_frame = 0
        return True

    def _judge_chunk(self, chunk: pb.Chunk) -> Verdict:
        end = chunk.first_frame + len(chunk.units)
        if self.next_frame is not None and end <= self.next_frame:
            return Verdict.OLD
        if self.next_frame is not None and chunk.first_frame > self.next_frame:
            return Verdict.HOLE
        self.next_frame = end
        return Verdict.NEWS


class Patience:
    """Tries again after ever longer waits, until `seconds` have brought nothing.

    A stream that stood for a while before it was lost had something, even if it was no more than silence.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._tried_at = -math.inf
        self.satisfied()

    def satisfied(self) -> None:
        """Something has come."""
        self._lost_at = math.inf
        self._wait_s = FIRST_WAIT_S

    def wait_s(self, now: float) -> float | None:
        """Something was lost at `now`: how long to wait before the next try, None to give up."""
        if now - self._tried_at > 2 * LONGEST_WAIT_S:
            self.satisfied()
        self._lost_at = min(self._lost_at, now)
        if now - self._lost_at >= self.seconds:
            return None
        wait_s, self._wait_s = self._wait_s, min(2 * self._wait_s, LONGEST_WAIT_S)
        self._tried_at = now + wait_s
        return wait_s
