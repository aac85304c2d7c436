"""What must outlive a denoiser: a session as another process remembers it, and as a replica opens it again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from engines.config.stream import StreamConfig
from engines.streaming.replica_log import SnapshotDelta, StandbySnapshot
from serving.chunk import Chunk
from serving.errors import ReplicaLost
from serving.pacing import Pace
from serving.session_record import SessionRecord

KEPT_CHUNKS = 80
"""Chunks that a session keeps for viewers who come late: a minute of video."""


@dataclass(frozen=True)
class Opening:
    """All that a replica needs to open a session: a new one, or one that goes on.

    `created` is Unix time. `incarnation` counts the replicas it has lived on. Where it goes on, `record` is its
    logic, `snapshot` the stream's light snapshot (None if it has no block yet) and `chunks` what viewers may still
    ask for.
    """

    session_id: str
    caller: str
    model: str
    stream: StreamConfig
    pace: Pace
    created: float
    incarnation: int = 0
    record: SessionRecord | None = None
    snapshot: bytes | None = None
    chunks: tuple[Chunk, ...] = ()
    recording: str = ""
    reason: str = ""


class MirrorItem(NamedTuple):
    """What has changed: the logic; after a block its latents and chunk; at first everything."""

    record: SessionRecord
    update: SnapshotDelta | None = None
    chunk: Chunk | None = None
    opening: Opening | None = None
    recording: str = ""


@dataclass
class Mirrored:
    """A session as its keeper knows it."""

    _opening: Opening | None = None
    _record: SessionRecord | None = None
    _mirror: StandbySnapshot | None = None
    _chunks: deque[Chunk] = field(default_factory=lambda: deque(maxlen=KEPT_CHUNKS))
    _recording: str = ""

    def apply(self, item: MirrorItem) -> None:
        """Take over what has changed."""
        if item.opening is not None:
            self._opening = item.opening
            self._forget()
            self._chunks.extend(item.opening.chunks)
        elif self._record is not None and item.record.take != self._record.take:
            self._forget()
        if item.update is not None:
            self._mirror = self._mirror or StandbySnapshot()
            self._mirror.apply(item.update)
        if item.chunk is not None:
            self._chunks.append(item.chunk)
        self._record, self._recording = item.record, item.recording

    def _forget(self) -> None:
        self._mirror = None
        self._chunks.clear()

    def reopening(self, reason: str) -> Opening:
        """How another replica opens the session. Raises ReplicaLost if too little is known."""
        if self._opening is None or self._record is None:
            raise ReplicaLost("the session was lost with its replica before anything of it was known elsewhere")
        return replace(
            self._opening,
            incarnation=self._opening.incarnation + 1,
            record=self._record,
            snapshot=None if self._mirror is None else self._mirror.snapshot(),
            chunks=tuple(self._chunks),
            recording=self._recording,
            reason=reason,
        )


def oldest_frame(chunks: Sequence[Chunk], next_frame: int) -> int:
    """The oldest frame that is kept; `next_frame` where none is."""
    return chunks[0].first_frame if chunks else next_frame
