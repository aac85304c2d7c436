"""What travels between a session on its replica and the processes that subscribe to it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from engines.config.stream import StreamConfig
from engines.streaming.replica_log import SnapshotDelta
from serving.media.chunk import Chunk
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.session.pacing import Pace
from serving.session.types import SessionRecord


class Role(Enum):
    """What a subscriber is for. Only viewers and controllers keep a session alive and its clock running."""

    VIEWER = "viewer"
    CONTROLLER = "controller"
    RECORDER = "recorder"
    STANDBY = "standby"

    @property
    def watches(self) -> bool:
        """Whether somebody looks at what is sent."""
        return self in (Role.VIEWER, Role.CONTROLLER)


@dataclass(frozen=True)
class SessionSpec:
    """What never changes in a session. `created` is Unix time."""

    session_id: str
    caller: str
    model: str
    stream: StreamConfig
    pace: Pace
    created: float


@dataclass(frozen=True)
class ResumeState:
    """From where a session goes on: its logic, and the light snapshot of its stream (None without a block).

    `past` is what its log of applied cues has before the record's end of it, `epoch` counts the replicas it has
    lived on, `chunks` are what viewers may still ask for, and `reason` says why it does not go on where it was.
    """

    record: SessionRecord
    snapshot: bytes | None = None
    epoch: int = 0
    chunks: tuple[Chunk, ...] = ()
    recording: str = ""
    reason: str = ""
    past: bytes = b""


class ReplicationDelta(NamedTuple):
    """What has changed: the logic; after a block its latents and chunk.

    The first has `spec`, all chunks, and the `past` of the log, as ResumeState.
    """

    record: SessionRecord
    update: SnapshotDelta | None = None
    chunks: tuple[Chunk, ...] = ()
    spec: SessionSpec | None = None
    epoch: int = 0
    recording: str = ""
    past: bytes = b""


class SavedSession(NamedTuple):
    """A session that goes on later, and its stream's light snapshot (None before the first block)."""

    session: pb.Session
    stream: bytes | None


class Item(NamedTuple):
    """What a subscriber is sent: an event as bytes, or a delta for the standby; neither is a sign of life."""

    event: bytes | None = None
    delta: ReplicationDelta | None = None
