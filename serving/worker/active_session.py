"""A session on its replica: logic, stream, prompts, kept chunks and subscribers in one object."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile

from google.protobuf.timestamp_pb2 import Timestamp

from engines.config.stream import StreamConfig
from engines.streaming.replica_log import PendingDelta, ReplicaLog, SnapshotDelta
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from serving.errors import FrameOutOfRange, ServingError
from serving.media.chunk import Chunk
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.prompts import PromptTrack
from serving.protocol.chunks import write_chunk
from serving.protocol.convert import write_applied, write_cue, write_receipt
from serving.replication.messages import ReplicationDelta, Role, SessionSpec
from serving.replication.standby import KEPT_CHUNKS, oldest_frame
from serving.session.state_machine import Receipt, Session
from serving.worker.subscriber import Subscriber


@dataclass
class ActiveSession:
    """All that one replica knows of a session.

    `prompts` are the texts encoded for the cues that are in force or next. No block is begun while
    somebody `held` the session; one is `making`, the last of the `undelivered` ones is `delivering`. `asked_now`
    says when a cue was asked for, by its frame, if it was to apply at once.
    """

    spec: SessionSpec
    logic: Session
    stream: Stream
    track: PromptTrack
    prompts: dict[str, Prompt]
    replica: str
    kept: deque[Chunk] = field(default_factory=lambda: deque(maxlen=KEPT_CHUNKS))
    subscribers: list[Subscriber] = field(default_factory=list)
    standby: Subscriber | None = None
    source: ReplicaLog | None = None
    commands: asyncio.Lock = field(default_factory=asyncio.Lock)
    held: int = 0
    making: bool = False
    delivering: asyncio.Task[None] | None = None
    undelivered: int = 0
    encoding: asyncio.Task[None] | None = None
    epoch: int = 0
    recording: str = ""
    asked_now: dict[int, float] = field(default_factory=dict)
    delivered_at: float | None = None
    closed: bool = False

    @property
    def id(self) -> str:
        """The public id."""
        return self.spec.session_id

    @property
    def decoder_key(self) -> str:
        """How decoders know this take of the session on this replica."""
        return f"{self.id}.{self.epoch}.{self.logic.take}"

    @property
    def config(self) -> StreamConfig:
        """Of its stream."""
        return self.spec.stream

    @property
    def oldest_frame(self) -> int:
        """The oldest frame that a viewer can begin with."""
        return oldest_frame(tuple(self.kept), self.logic.delivered_frames)

    def upcoming_texts(self, blocks: int) -> list[str]:
        """Texts of the cues that fall on one of the next `blocks` blocks."""
        last = self.logic.next_block + blocks - 1
        falling = takewhile(lambda p: self.config.blocks.block_at(p.cue.frame) <= last, self.logic.pending)
        return [text for pending in falling for text, _ in pending.cue.blend.parts]

    def has_prompts(self) -> bool:
        """Whether the next block need not wait for the text encoder."""
        return all(text in self.prompts for text in self.upcoming_texts(1))

    def forget_prompts(self, keep: Iterable[str]) -> None:
        """Let go of texts that neither the track nor `keep` needs."""
        wanted = set(keep) | set(self.upcoming_texts(2))
        for text in [text for text in self.prompts if text not in wanted]:
            del self.prompts[text]

    # What subscribers see

    def publish(self, **event: object) -> None:
        """Send an event, one field of `pb.Event`, to everyone."""
        self._send(pb.Event(take=self.logic.take, **event))  # type: ignore[arg-type]

    def publish_receipts(self, receipts: Iterable[Receipt]) -> None:
        """Send receipts to everyone."""
        for receipt in receipts:
            self.publish(receipt=write_receipt(receipt))

    def publish_state(self) -> None:
        """Send how the session stands."""
        self.publish(state=self.describe())

    def publish_chunk(self, chunk: Chunk) -> None:
        """Keep a chunk, and send it."""
        self.kept.append(chunk)
        event = pb.Event(take=self.logic.take, chunk=write_chunk(chunk)).SerializeToString()
        for subscriber in self.subscribers:
            if subscriber.role is not Role.STANDBY:
                subscriber.put_chunk(event, self.logic.take, chunk.first_frame, len(chunk.units))

    def remember(self, chunk: Chunk | None = None, update: SnapshotDelta | None = None) -> None:
        """Tell the standby what has changed."""
        if self.standby is not None:
            chunks = () if chunk is None else (chunk,)
            record = self.logic.record(asyncio.get_running_loop().time())
            self.standby.put_delta(
                ReplicationDelta(record, update, chunks, epoch=self.epoch, recording=self.recording)
            )

    def changes(self, block: Block) -> PendingDelta | None:
        """What is new in the stream with `block` for the standby; None without one."""
        source = self.source
        return None if source is None else source.changes(block.ready)

    def subscribe(
        self, role: Role, from_frame: int | None, now: float, client_id: str = "", *, reattach: bool = False
    ) -> Subscriber:
        """A new subscriber, who is sent the state and what is kept from `from_frame` on.

        A controller takes over from the one before it, which is told. One that attaches again is told itself if
        another has come since. Who was told is a viewer. Raises FrameOutOfRange for a frame that is not kept any
        more.
        """
        if from_frame is not None and from_frame < self.oldest_frame:
            raise FrameOutOfRange(
                f"frame {from_frame} is not kept any more; the oldest frame is {self.oldest_frame}"
            )
        subscriber = Subscriber(role, self.logic.take, from_frame)
        self.subscribers.append(subscriber)
        if role.watches:
            self.logic.viewer_came(now)
        if role is not Role.STANDBY:
            state = pb.Event(take=self.logic.take, state=self.describe())
            subscriber.put_event(state.SerializeToString())
            self._send_kept(subscriber, from_frame)
        if role is Role.CONTROLLER:
            steers = self.logic.attach(client_id, reattach=reattach)
            self._replace([other for other in self.subscribers if (other is subscriber) != steers])
        return subscriber

    def _replace(self, controllers: Iterable[Subscriber]) -> None:
        event = pb.Event(take=self.logic.take, replaced=pb.Replaced()).SerializeToString()
        for subscriber in controllers:
            if subscriber.role is Role.CONTROLLER:
                subscriber.role = Role.VIEWER
                subscriber.put_event(event)

    def unsubscribe(self, subscriber: Subscriber, now: float) -> None:
        """A subscriber has gone."""
        self.subscribers.remove(subscriber)
        if subscriber.role.watches:
            self.logic.viewer_left(now)
        if subscriber.role is Role.CONTROLLER and not self._has(Role.CONTROLLER):
            self.logic.reports_ended(now)
        if subscriber is self.standby:
            self.standby = self.source = None

    def finish(self, failure: ServingError | None = None) -> None:
        """Let all subscribers go."""
        self.closed = True
        for subscriber in self.subscribers:
            subscriber.finish(failure)

    def describe(self, *, cues: bool = True) -> pb.Session:
        """As the protocol has it."""
        logic, spec = self.logic, self.spec
        return pb.Session(
            id=self.id,
            state=pb.SessionState.Name(logic.state.value),
            options=write_options(spec),
            take=logic.take,
            next_frame=logic.earliest_frame,
            current_start_frame=logic.delivered_frames,
            shown_frame=logic.shown_frame(asyncio.get_running_loop().time()),
            prompt=logic.prompt,
            pending=[write_cue(pending.cue) for pending in logic.pending] if cues else [],
            applied=[write_applied(applied) for applied in logic.applied] if cues else [],
            viewers=sum(subscriber.role.watches for subscriber in self.subscribers),
            recording=self.recording,
            oldest_frame=self.oldest_frame,
            create_time=Timestamp(seconds=int(spec.created), nanos=int(spec.created % 1 * 1e9)),
            replica=self.replica,
        )

    def queued_blocks(self, now: float) -> int:
        """Blocks delivered behind the one that is being shown."""
        shown = max(self.logic.shown_frame(now), 0)
        return sum(1 for chunk in self.kept if chunk.first_frame > shown)

    def end_frame(self, block: int) -> int:
        """The frame behind the last of `block`."""
        return self.config.blocks.pixel_frames(block + 1)

    def _has(self, role: Role) -> bool:
        return any(subscriber.role is role for subscriber in self.subscribers)

    def _send(self, event: pb.Event) -> None:
        data = event.SerializeToString()
        for subscriber in self.subscribers:
            if subscriber.role is not Role.STANDBY:
                subscriber.put_event(data)

    def _send_kept(self, subscriber: Subscriber, from_frame: int | None) -> None:
        if from_frame is None:
            return
        for chunk in self.kept:
            event = pb.Event(take=self.logic.take, chunk=write_chunk(chunk)).SerializeToString()
            subscriber.put_backlog(event, self.logic.take, chunk.first_frame, len(chunk.units))


def write_options(spec: SessionSpec) -> pb.SessionOptions:
    """How a session is generated, as the protocol has it."""
    stream, pace = spec.stream, spec.pace
    options = pb.SessionOptions(
        model=spec.model,
        seed=stream.seed,
        height=stream.height,
        width=stream.width,
        fps=pace.fps,
        ahead=pace.ahead,
    )
    options.lease.FromMilliseconds(round(pace.lease_s * 1000))
    return options
