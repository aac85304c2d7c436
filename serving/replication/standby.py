"""The standby copy of a session: all that another process needs to go on with it."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from engines.streaming.replica_log import StandbySnapshot
from serving.errors import ReplicaLost
from serving.media.chunk import RecentChunks
from serving.replication.messages import BlockPictures, FullState, ReplicationDelta, ResumeState, SessionSpec
from serving.session.record_delta import RecordCopy, RecordDelta, RecordGap
from serving.session.recording_mark import NO_RECORDING, RecordingMark
from serving.session.types import SessionRecord, State

KEPT_INPUTS = 4
"""Blocks of a session that restyles a video, from whose pictures an encoder elsewhere goes on."""

SOON_S = 10.0
"""A replica that dies so soon after it got a session may have died of the block that it began with."""


class MissedDelta(Exception):
    """A delta before this one did not come. The full state has to be asked for."""


class BlockInWork(NamedTuple):
    """The block that a replica was making when it was heard last; or, where it was at none, the next one of a
    session that runs, which `is_next`.
    """

    take: int
    block: int
    is_next: bool = False


@dataclass
class StandbyCopy:
    """A session as its standby knows it: nothing, until the first delta has brought the full state."""

    number: int = -1
    """Of the last delta."""
    making: int | None = None
    """The block that the replica was making when it was heard last."""
    recording: RecordingMark = NO_RECORDING
    _spec: SessionSpec | None = None
    _logic: RecordCopy | None = None
    _snapshot: StandbySnapshot | None = None
    _chunks: RecentChunks = field(default_factory=RecentChunks)
    _pictures: deque[BlockPictures] = field(default_factory=lambda: deque(maxlen=KEPT_INPUTS))

    @property
    def is_full(self) -> bool:
        """Whether the session could go on from here."""
        return self._logic is not None

    @property
    def spec(self) -> SessionSpec:
        """What never changes in the session. Raises ReplicaLost if nothing is known of it."""
        if self._spec is None:
            raise ReplicaLost("nothing of the session has come here yet")
        return self._spec

    @property
    def record(self) -> SessionRecord | None:
        """The session's logic as it was last heard of."""
        return None if self._logic is None else self._logic.record

    def apply(self, delta: ReplicationDelta) -> None:
        """Take over what has changed. Raises MissedDelta, and changes nothing, if one before it is missing."""
        match delta.change:
            case FullState(spec, record, past):
                self.close()
                self._forget()
                self._spec, self._logic = spec, RecordCopy(record, past)
            case RecordDelta() as change:
                self._change(delta.number, change)
        if delta.update is not None:
            self._snapshot = self._snapshot or StandbySnapshot()
            self._snapshot.apply(delta.update)
        self._chunks.extend(delta.chunks)
        self._pictures.extend(delta.pictures)
        self.number, self.making, self.recording = delta.number, delta.making, delta.recording

    def resume_state(self, reason: str) -> ResumeState:
        """From where another replica goes on. Raises ReplicaLost if too little is known."""
        if self._logic is None:
            raise ReplicaLost("nothing of the session has come here yet")
        return ResumeState(
            record=self._logic.record,
            snapshot=None if self._snapshot is None else self._snapshot.snapshot(),
            chunks=tuple(self._chunks),
            recording=self.recording,
            reason=reason,
            past=self._logic.log.past(),
            pictures=tuple(self._pictures),
        )

    @property
    def block_in_work(self) -> BlockInWork | None:
        """What its replica is at, as far as is known."""
        if self._logic is None:
            return None
        record = self._logic.record
        if self.making is not None:
            return BlockInWork(record.take, self.making)
        return BlockInWork(record.take, record.next_block, is_next=True) if record.state is State.RUNNING else None

    @property
    def is_suspended(self) -> bool:
        """Whether it has no slot, as far as is known here."""
        return self._logic is not None and self._logic.record.suspended

    def close(self) -> None:
        """Give its file back; it can be filled again."""
        if self._logic is not None:
            self._logic.close()
            self._logic = None

    def _change(self, number: int, change: RecordDelta) -> None:
        if self._logic is None or number != self.number + 1:
            raise MissedDelta(f"delta {number} came after {self.number}")
        take = self._logic.record.take
        try:
            self._logic.apply(change)
        except RecordGap as gap:
            raise MissedDelta(f"delta {number}: {gap}") from gap
        if change.take != take:
            self._forget()

    def _forget(self) -> None:
        self._snapshot = None
        self._chunks.clear()
        self._pictures.clear()


class BlockDeaths:
    """Which replicas died at which blocks of a session: two that made the same one have died of that.

    One that dies at once has not said that it makes it; so have three that died before it, each soon after it got
    the session. A replica that was left, since it fell silent, may be dying of the block that it was at then.
    Times are those of a monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        self._got_at: dict[str, float] = {}
        self._left: dict[str, BlockInWork | None] = {}
        self._dead: set[str] = set()
        self._deaths: Counter[BlockInWork] = Counter()

    def moved(self, replica: str, at: BlockInWork | None, to: str, now: float) -> None:
        """The session was left by a replica that was `at` a block of it, and goes on on another one."""
        self._got_at[to] = now
        self._left.pop(to, None)
        self._left[replica] = at

    def one_too_many(self, replica: str, at: BlockInWork | None, now: float) -> int | None:
        """A replica has died, `at` a block of the session if that is there: its number, if it is to blame."""
        block = self._left.get(replica, at)
        if block is None or replica in self._dead:
            return None
        self._dead.add(replica)
        if block.is_next and now - self._got_at.get(replica, -math.inf) > SOON_S:
            return None
        self._deaths[block] += 1
        return block.block if self._deaths[block] >= (3 if block.is_next else 2) else None
