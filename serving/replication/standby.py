"""The standby copy of a session: all that another process needs to go on with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from engines.streaming.replica_log import StandbySnapshot
from serving.errors import ReplicaLost
from serving.media.chunk import Chunk
from serving.replication.messages import ReplicationDelta, ResumeState, SessionSpec
from serving.session.record_delta import RecordCopy, RecordDelta

KEPT_CHUNKS = 80
"""Chunks that a session keeps for viewers who come late: a minute of video."""


@dataclass
class StandbyCopy:
    """A session as its standby knows it."""

    _spec: SessionSpec | None = None
    _copy: RecordCopy | None = None
    _epoch: int = 0
    _snapshot: StandbySnapshot | None = None
    _chunks: deque[Chunk] = field(default_factory=lambda: deque(maxlen=KEPT_CHUNKS))
    _recording: str = ""

    @property
    def spec(self) -> SessionSpec:
        """What never changes in the session. Raises ReplicaLost if nothing is known of it."""
        if self._spec is None:
            raise ReplicaLost("the session was lost with its replica before anything of it was known elsewhere")
        return self._spec

    def apply(self, delta: ReplicationDelta) -> None:
        """Take over what has changed."""
        if delta.spec is not None:
            self._spec = delta.spec
            self._forget()
        elif self._copy is not None and delta.record.take != self._copy.record.take:
            self._forget()
        if delta.update is not None:
            self._snapshot = self._snapshot or StandbySnapshot()
            self._snapshot.apply(delta.update)
        self._chunks.extend(delta.chunks)
        self._epoch, self._recording = delta.epoch, delta.recording
        if self._copy is None or delta.spec is not None:
            self._copy = RecordCopy(delta.record, delta.past)
        else:
            self._copy.apply(RecordDelta.between(self._copy.record, delta.record))

    def _forget(self) -> None:
        self._snapshot = None
        self._chunks.clear()

    def resume_state(self, reason: str) -> ResumeState:
        """From where another replica goes on. Raises ReplicaLost if too little is known."""
        if self._copy is None:
            raise ReplicaLost("the session was lost with its replica before anything of it was known elsewhere")
        return ResumeState(
            self._copy.record,
            None if self._snapshot is None else self._snapshot.snapshot(),
            self._epoch + 1,
            tuple(self._chunks),
            self._recording,
            reason,
            self._copy.log.past(),
        )


def oldest_frame(chunks: Sequence[Chunk], next_frame: int) -> int:
    """The oldest frame that is kept; `next_frame` where none is."""
    return chunks[0].first_frame if chunks else next_frame
