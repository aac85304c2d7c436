"""The standby copy of a session: all that another process needs to go on with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from engines.streaming.replica_log import StandbySnapshot
from serving.errors import ReplicaLost
from serving.media.chunk import Chunk
from serving.replication.messages import ReplicationDelta, ResumeState, SessionSpec
from serving.session.types import SessionRecord

KEPT_CHUNKS = 80
"""Chunks that a session keeps for viewers who come late: a minute of video."""


class MissedDelta(Exception):
    """A delta before this one did not come. The full state has to be asked for."""


@dataclass
class StandbyCopy:
    """A session as its standby knows it: nothing, until the first delta has brought the full state."""

    _spec: SessionSpec | None = None
    _last: ReplicationDelta | None = None
    _snapshot: StandbySnapshot | None = None
    _chunks: deque[Chunk] = field(default_factory=lambda: deque(maxlen=KEPT_CHUNKS))

    @property
    def is_full(self) -> bool:
        """Whether the session could go on from here."""
        return self._last is not None

    @property
    def number(self) -> int:
        """Of the last delta; -1 before the first."""
        return -1 if self._last is None else self._last.number

    @property
    def making(self) -> int | None:
        """The block that the replica was making when it was heard last."""
        return None if self._last is None else self._last.making

    @property
    def spec(self) -> SessionSpec:
        """What never changes in the session. Raises ReplicaLost if nothing is known of it."""
        if self._spec is None:
            raise ReplicaLost("nothing of the session has come here yet")
        return self._spec

    def apply(self, delta: ReplicationDelta) -> None:
        """Take over what has changed. Raises MissedDelta, and changes nothing, if one before it is missing."""
        if delta.spec is not None:
            self._spec = delta.spec
            self._forget()
        elif self._last is None or delta.number != self._last.number + 1:
            raise MissedDelta(f"delta {delta.number} came after {self.number}")
        elif delta.record.take != self._last.record.take:
            self._forget()
        if delta.update is not None:
            self._snapshot = self._snapshot or StandbySnapshot()
            self._snapshot.apply(delta.update)
        self._chunks.extend(delta.chunks)
        self._last = delta._replace(update=None, chunks=())

    def resume_state(self, reason: str) -> ResumeState:
        """From where another replica goes on. Raises ReplicaLost if too little is known."""
        if self._last is None:
            raise ReplicaLost("nothing of the session has come here yet")
        return ResumeState(
            record=self._last.record,
            snapshot=None if self._snapshot is None else self._snapshot.snapshot(),
            chunks=tuple(self._chunks),
            recording=self._last.recording,
            reason=reason,
        )

    @property
    def record(self) -> SessionRecord | None:
        """The session's logic as it was last heard of."""
        return None if self._last is None else self._last.record

    def _forget(self) -> None:
        self._snapshot = None
        self._chunks.clear()


def oldest_frame(chunks: Sequence[Chunk], next_frame: int) -> int:
    """The oldest frame that is kept; `next_frame` where none is."""
    return chunks[0].first_frame if chunks else next_frame
