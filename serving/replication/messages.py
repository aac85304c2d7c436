"""What travels between a session on its replica and the managers that carry its streams."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from engines.config.video_stream import AnyStreamConfig
from engines.streaming.replica_log import SnapshotDelta
from serving.errors import InvalidRequest
from serving.media.chunk import Chunk, ChunkSpan
from serving.media.clips.picture_scaler import Fit
from serving.media.clips.shown_frame import PictureSize
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.session.pacing import Pace
from serving.session.record_delta import RecordDelta
from serving.session.recording_mark import NO_RECORDING, RecordingMark
from serving.session.types import SessionRecord


class Role(Enum):
    """What a subscriber is for. Only viewers and controllers keep a session alive and its clock running."""

    VIEWER = "viewer"
    CONTROLLER = "controller"
    RECORDER = "recorder"

    @property
    def watches(self) -> bool:
        """Whether somebody looks at what is sent."""
        return self is not Role.RECORDER


@dataclass(frozen=True)
class SessionSpec:
    """What never changes in a session. `created` is Unix time, `fit` says how pictures are brought to its size."""

    session_id: str
    caller: str
    model: str
    stream: AnyStreamConfig
    pace: Pace
    created: float
    fit: Fit = "fill"


class BlockPictures(NamedTuple):
    """The pictures that a block began with: the id of that of each frame, and all of them as JPEG.

    What was before a block that `opens` the video anew has no part in what comes. Pictures of `size`, as they were
    sent, have opened it last.
    """

    ids: tuple[int, ...]
    data: tuple[bytes, ...]
    opens: bool = False
    size: PictureSize | None = None


@dataclass(frozen=True)
class ResumeState:
    """From where a session goes on: its logic, and the light snapshot of its stream (None before the first block).

    `past` is what its log of applied cues has before the record's end of it, `chunks` are what viewers may still
    ask for, and `reason` says why it does not go on where it was. `loras`, if not None, must be merged where it
    goes on. Only a replica's own snapshot is `exact`, and goes on bit for bit. `pictures` are those that the last
    blocks began with, and `lost_pictures` had come for later ones. Raises InvalidRequest for blocks without a
    snapshot: the session would begin again.
    """

    record: SessionRecord
    snapshot: bytes | None = None
    chunks: tuple[Chunk, ...] = ()
    recording: RecordingMark = NO_RECORDING
    reason: str = ""
    past: bytes = b""
    loras: tuple[str, ...] | None = None
    exact: bool = False
    pictures: tuple[BlockPictures, ...] = ()
    lost_pictures: int = 0

    def __post_init__(self) -> None:
        if self.snapshot is None and self.record.delivered_frames > 0:
            raise InvalidRequest(
                f"the session has {self.record.delivered_frames} frames and no snapshot of its stream"
            )


class Prepared(NamedTuple):
    """A copy of a session that is ready, and has no lease yet.

    `reading` is the replica's monotonic clock, `description` a `pb.Session` as bytes, and `room` how many sessions
    could be opened besides.
    """

    replica: str
    attempt: str
    reading: float
    description: bytes
    room: int


class HandedOver(NamedTuple):
    """A session as its copy left it when it yielded."""

    spec: SessionSpec
    resume: ResumeState


class FullState(NamedTuple):
    """All of a session but its stream and chunks; `past` as in ResumeState."""

    spec: SessionSpec
    record: SessionRecord
    past: bytes


class ReplicationDelta(NamedTuple):
    """What has changed since the delta before, by `number`: the logic, and with a block its latents and chunk.

    The first is `full`, and so is one that does not build on the one before it. `making` is the block that is
    being made, and None where none is. The standby acknowledges one that says `wants_ack`: somebody waits for it.
    `pictures` are those that blocks have begun with.
    """

    number: int
    change: RecordDelta | FullState
    update: SnapshotDelta | None = None
    chunks: tuple[Chunk, ...] = ()
    making: int | None = None
    recording: RecordingMark = NO_RECORDING
    wants_ack: bool = False
    pictures: tuple[BlockPictures, ...] = ()


class SavedSession(NamedTuple):
    """A session that goes on later, and its stream's light snapshot (None before the first block)."""

    session: pb.Session
    stream: bytes | None


class Departure(NamedTuple):
    """A session as its copy left it for another server; `rest` is all that `saved` has not, without a snapshot."""

    saved: SavedSession
    rest: pb.EvacuatedSession


class Joined(NamedTuple):
    """What viewers of a stream begin with: the session's state, then chunks; and how many of them there may be."""

    viewers: int
    events: list[bytes]


class Item(NamedTuple):
    """What a subscriber is sent: an event as bytes, of a chunk its `span` too. Without one it is a heartbeat."""

    event: bytes | None = None
    span: ChunkSpan | None = None


class FeedItem(NamedTuple):
    """What a standby is sent. Without a delta it is a heartbeat."""

    delta: ReplicationDelta | None = None
