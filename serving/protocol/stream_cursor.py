"""What a viewer has of a session, and what comes next: so that no frame is missing, and none comes twice."""

from __future__ import annotations

from enum import Enum

from serving.media.chunk import ChunkSpan
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent, gap_event


class Verdict(Enum):
    """Of an event: it is to be passed on, it was before, or something before it is missing."""

    NEWS = "news"
    OLD = "old"
    HOLE = "hole"


class StreamCursor:
    """Judges the events of a session's streams, one after the other. Frames are those of the present take.

    `next_frame` is the one that is needed next, and None until the first event of a viewer who takes what comes.
    Between two events of a stream none may be missing, as their numbers tell.
    """

    def __init__(self, from_frame: int | None) -> None:
        self.take: int | None = None
        self.next_frame = from_frame
        self._reopened = False
        self._seq: int | None = None

    def reopen(self) -> int | None:
        """A stream begins: the frame to ask for."""
        self._reopened = self.next_frame not in (None, 0)
        self._seq = None
        return self.next_frame

    def judge(self, event: pb.Event) -> Verdict:
        """Whether an event is to be passed on. After a hole the stream is to be opened again.

        What concerns a client rather than the video is news whatever take it was said in.
        """
        if self._misses(event):
            return Verdict.HOLE
        if event.WhichOneof("event") in ("receipt", "replaced", "error"):
            return Verdict.NEWS
        if event.HasField("heartbeat"):
            return Verdict.OLD
        if event.HasField("end"):
            over = event.end.reason == pb.STREAM_END_REASON_SESSION_ENDED
            return Verdict.NEWS if over else Verdict.OLD
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
        return gap_event(ChunkSpan(session.take, first, session.oldest_frame - first))

    def _misses(self, event: pb.Event) -> bool:
        """Whether an event before this one is missing, of which a state would have told.

        Numbers are followed from a chunk on, since a stream leaves out those before the frame that was asked for;
        and again from the first one behind a gap, which stands for others.
        """
        kind, before = event.WhichOneof("event"), self._seq
        # Progress counts nothing: it has the number of the last event before it.
        expected = None if before is None else before + (kind != "progress")
        if kind == "gap":
            self._seq = None
        elif event.seq and (kind == "chunk" or before is not None):
            self._seq = event.seq if kind == "state" else max(event.seq, before or 0)
        return expected is not None and kind != "state" and event.seq > expected

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


class RelayCursor:
    """Where a stream of events stands, so that it can go on elsewhere."""

    def __init__(self, from_frame: int | None) -> None:
        self.next_frame = from_frame
        self.take: int | None = None
        """The one that `next_frame` is of; None as long as no event has said it."""

    def accept(self, sent: SerializedEvent) -> bool:
        """Whether an event is news; chunks that were sent before are not."""
        span = sent.span
        self._begin(sent.event.take if span is None else span.take)
        if span is None:
            if sent.event.HasField("gap"):
                self.next_frame = sent.event.gap.first_frame + sent.event.gap.frames
            return True
        if self.next_frame is not None and span.end_frame <= self.next_frame:
            return False
        self.next_frame = span.end_frame
        return True

    def _begin(self, take: int) -> None:
        if self.take is not None and take > self.take:
            self.next_frame = 0
        self.take = max(take, self.take or 0)
