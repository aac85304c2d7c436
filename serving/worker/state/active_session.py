"""A session on its replica: logic, stream, prompts, audience and standby in one object."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from engines.config.video_stream import AnyStreamConfig, Loop, VideoStreamConfig, as_run
from engines.device.event_timer import Lap
from engines.streaming.replica_log import PendingDelta
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from engines.video.stream import VideoStream
from engines.video.stream_engine import AnyStream
from serving.errors import ServingError, SessionNotFound
from serving.media.clips.shown_frame import PictureSize
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.prompts import PromptTrack
from serving.protocol.convert import write_applied, write_receipt
from serving.protocol.cue_pages import next_cues, recent_cues
from serving.protocol.events import LOOPS
from serving.protocol.requests import FITS
from serving.replication.messages import SessionSpec
from serving.session.recording_mark import NO_RECORDING, RecordingMark
from serving.session.state_machine import Applied, BlockPlan, Receipt, Session, State
from serving.session.types import Waiting
from serving.tracing.tracer import UNTRACED_BLOCK, BlockSpan
from serving.worker.capacity.pace_watch import PaceWatch
from serving.worker.pictures.session_input import EncodedInput, SessionInput
from serving.worker.streams.audience import Audience
from serving.worker.streams.standby_feed import Logic, StandbyFeed
from serving.worker.streams.subscriber import Subscriber

NO_PICTURE_S = 1.0
"""After so long a session that waits for pictures says so."""


class BegunBlock(NamedTuple):
    """A block that has begun.

    Args:
        plan: what falls on it.
        span: ends with its delivery.
        began: when it did.
        pictures: those that it is made from, by id; empty where it is made from none.
        due: when it is to be sent, if pictures say so.
        loop: how it is made, if it is made from pictures.

    """

    plan: BlockPlan
    span: BlockSpan
    began: float
    pictures: tuple[int, ...] = ()
    due: float | None = None
    loop: Loop | None = None


@dataclass
class ActiveSession:
    """All that one replica knows of one copy of a session, which `attempt` names.

    `prompts` are the texts encoded for the cues that are in force or next, of which `texts_in_force` are the
    first. No block is begun while somebody `held` the session; `making` is the one that is being made, and has
    `span`, the last of the `undelivered` ones is `delivering`. `encoded_at` says from when to when each new text
    was encoded; since `ready_since` the next block could be made. `settled` is the time of the clean pass that was
    run since the last block. `asked_now` says when a cue was asked for, by its frame, if it was to apply at once.
    It has been paused since `paused_since`; one that is suspended and was to be resumed `wants_room` until then.
    Only `feed`, of the one standby, makes the copy outlive its replica. `renewed` is set, and replaced, whenever
    its lease is renewed. `resumed` says how a copy that was elsewhere came here. `input` has the pictures that
    come for a session that restyles a video; `loop` is how its blocks are to be made, and `on_way` are those that
    have begun and not come out.
    """

    spec: SessionSpec
    attempt: str
    logic: Session
    stream: AnyStream
    track: PromptTrack
    prompts: dict[str, Prompt]
    replica: str
    provenance: pb.Provenance
    input: SessionInput | None = None
    on_way: deque[BegunBlock] = field(default_factory=deque)
    loop: Loop = "plain"
    feed: StandbyFeed | None = None
    renewed: asyncio.Event = field(default_factory=asyncio.Event)
    commands: asyncio.Lock = field(default_factory=asyncio.Lock)
    held: int = 0
    making: int | None = None
    settling: bool = False
    settled: Lap | None = None
    delivering: asyncio.Task[None] | None = None
    undelivered: int = 0
    encoding: asyncio.Task[None] | None = None
    encoded_at: dict[str, tuple[float, float]] = field(default_factory=dict)
    ready_since: float = math.inf
    span: BlockSpan = UNTRACED_BLOCK
    recording: RecordingMark = NO_RECORDING
    resumed: pb.Resumed | None = None
    asked_now: dict[int, float] = field(default_factory=dict)
    delivered_at: float | None = None
    paused_since: float | None = None
    wants_room: float = -math.inf
    waiting: Waiting = Waiting.UNSPECIFIED
    broken_picture: str = ""
    stands_since: tuple[float, object] = (0.0, None)
    ending: bool = False
    closed: bool = False
    failure: ServingError | None = None
    texts_in_force: tuple[str, ...] = field(init=False)
    watch: PaceWatch = field(init=False)
    audience: Audience = field(init=False)

    def __post_init__(self) -> None:
        self.texts_in_force = tuple(self.prompts)
        self.watch = PaceWatch(self.spec.pace.fps)
        self.audience = Audience(self.logic, self.describe, self.replicate)

    @property
    def id(self) -> str:
        """The public id."""
        return self.spec.session_id

    @property
    def decoder_key(self) -> str:
        """How decoders know this copy in its present take."""
        return self.decoder_key_of(self.logic.take)

    def decoder_key_of(self, take: int) -> str:
        """How decoders know this copy in a take."""
        return f"{self.id}.{self.attempt}.{take}"

    @property
    def config(self) -> AnyStreamConfig:
        """Of its stream."""
        return self.spec.stream

    @property
    def cost_config(self) -> AnyStreamConfig:
        """As what it is made costs."""
        return as_run(self.config, self.stream.loop) if isinstance(self.stream, VideoStream) else self.config

    @property
    def opening(self) -> int:
        """The block with which its stream opened last: it does not change while any other is on its way."""
        return self.stream.opening if isinstance(self.stream, VideoStream) else 0

    @property
    def opens_next(self) -> VideoStreamConfig | None:
        """Of its stream, where the next block is to open the video."""
        if not isinstance(self.stream, VideoStream) or not (self.logic.cuts_next or self.stream.is_opening):
            return None
        return self.stream.config

    @property
    def waits_for_flush(self) -> bool:
        """Whether blocks are on their way, and can come out."""
        return bool(self.on_way) and not (self.ending or self.closed)

    @property
    def ready_input(self) -> EncodedInput | None:
        """The next block's input, once it is here as that block needs it."""
        ready = None if self.input is None else self.input.ready
        return ready if ready is not None and ready.pictures.opens == self.logic.cuts_next else None

    @property
    def is_to_be_flushed(self) -> bool:
        """Whether blocks on their way are to come out before anything else is done."""
        if self.is_busy or not self.waits_for_flush:
            return False
        changes = isinstance(self.stream, VideoStream) and self.stream.loop != self.loop
        changes = changes or self.logic.cuts_next
        return self.held > 0 or changes or (self.input is not None and self.input.is_over)

    @property
    def context_due(self) -> bool:
        """Whether the clean pass of the last block has not been run yet."""
        return isinstance(self.stream, Stream) and self.stream.context_due

    @property
    def is_idle(self) -> bool:
        """Whether the device may work for it: nothing does, and nobody holds it."""
        return not (self.ending or self.closed or self.held or self.is_busy)

    @property
    def is_busy(self) -> bool:
        """Whether the device works on its stream."""
        return self.making is not None or self.settling

    def take_settled(self) -> Lap | None:
        """The time of the clean pass that was run since the last block; None where a block's own passes had it."""
        settled, self.settled = self.settled, None
        return settled

    def due(self, now: float) -> float | None:
        """When the next block may begin; None until something happens. One that cuts waits for all before it."""
        if self.input is None:
            return self.logic.due(now)
        waits = self.logic.cuts_next and (self.on_way or self.undelivered)
        if self.logic.state is not State.RUNNING or self.ready_input is None or waits:
            return None
        return max(now, self.input.limit.at)

    def expected(self) -> float | None:
        """When the next block is to be on screen; None where nothing says so."""
        if self.input is None:
            return self.logic.expected()
        if self.ready_input is None:
            return None
        return max(self.ready_input.due, self.input.limit.at + self.input.period_s)

    def upcoming_texts(self, blocks: int) -> list[str]:
        """Texts of the cues that fall on one of the next `blocks` blocks."""
        last = self.logic.next_block + blocks - 1
        falling = takewhile(lambda p: self.config.blocks.block_at(p.cue.frame) <= last, self.logic.pending)
        return [text for pending in falling for text, _ in pending.cue.blend.parts]

    def has_prompts(self) -> bool:
        """Whether the next block need not wait for the text encoder."""
        return all(text in self.prompts for text in self.upcoming_texts(1))

    def forget_prompts(self) -> None:
        """Let go of texts that neither the prompt in force needs, nor one of the next blocks."""
        wanted = {*self.texts_in_force, *self.upcoming_texts(2)}
        for text in [text for text in self.prompts if text not in wanted]:
            del self.prompts[text]
            self.encoded_at.pop(text, None)

    def look_at_waiting(self, now: float) -> None:
        """Tell everybody what the session waits for, once it has for long, and that it goes on."""
        found = self._waits_for(now)
        standing = found, self.logic.next_block, self.logic.delivered_frames
        if standing != self.stands_since[1]:
            self.stands_since = now, standing
        patience_s = NO_PICTURE_S if self.input is not None else self.spec.pace.patience_s(self.config.blocks)
        if now - self.stands_since[0] < patience_s:
            found = Waiting.UNSPECIFIED
        broken = self.input.decoder.problem if self.input is not None and found is Waiting.INPUT else ""
        if (found, broken) != (self.waiting, self.broken_picture):
            self.waiting, self.broken_picture = found, broken
            self.audience.publish_state()

    def _waits_for(self, now: float) -> Waiting:
        if self.input is not None:
            return self._waits_for_pictures(self.input)
        due = self.logic.due(now)
        if due is None or due > now:
            return self.logic.waits_for(now)
        return Waiting.SERVER if self.has_prompts() else Waiting.PROMPT

    def _waits_for_pictures(self, pictures: SessionInput) -> Waiting:
        if self.logic.state is not State.RUNNING:
            return Waiting.UNSPECIFIED
        if pictures.ready is None and not pictures.has_enough:
            return Waiting.INPUT
        return Waiting.SERVER if self.has_prompts() else Waiting.PROMPT

    # What all are told

    def publish_applied(self, plan: BlockPlan, resized: PictureSize | None = None) -> None:
        """Send what a block brings into force; behind the receipts of a command that is being answered.

        It opens the video anew with pictures of another size where they are `resized`.
        """
        take = self.logic.take
        events = [pb.Event(take=take, receipt=write_receipt(receipt)) for receipt in plan.receipts]
        if plan.applied is not None:
            events.append(pb.Event(take=take, applied=self._applied(plan.applied, resized)))
        self.audience.publish_behind(events)

    def _applied(self, applied: Applied, resized: PictureSize | None) -> pb.AppliedCue:
        """A cue that comes into force, with how much of its prompts is too long to be read."""
        message = write_applied(applied)
        if resized is not None:
            message.picture_size.CopyFrom(pb.PictureSize(height=resized.height, width=resized.width))
        message.cut_tokens = sum(self.prompts[text].cut_tokens for text, _ in applied.cue.blend.parts)
        return message

    async def answer(self, receipts: Iterable[Receipt], timeout_s: float) -> bool:
        """Send receipts once the standby has what they say, or after `timeout_s`; returns whether it has."""
        take, replicated = self.logic.take, False
        self.audience.hold()
        try:
            replicated = self.feed is not None and await self.feed.replicated(timeout_s)
        finally:
            answers = [write_receipt(receipt, replicated=replicated) for receipt in receipts]
            self.audience.release(pb.Event(take=take, receipt=answer) for answer in answers)
        return replicated

    def attach(self, controller: Subscriber, client_id: str, *, reattach: bool, now: float) -> None:
        """As `Audience.attach`; the standby is told as well."""
        self.audience.attach(controller, client_id, reattach=reattach, now=now)
        self.replicate()

    def finish(self, failure: ServingError | None = None) -> None:
        """Let all subscribers and the standby go."""
        self.closed, self.failure = True, failure
        self.renewed.set()
        self.audience.finish(failure)
        if self.feed is not None:
            self.feed.finish(failure)

    def require_open(self) -> None:
        """Raise what ended the copy, if it has ended."""
        if self.closed:
            raise self.failure or SessionNotFound("the session has ended")

    # What the standby knows

    def standing(self) -> Logic:
        """How the logic stands, for the standby."""
        return Logic(self.logic.record(asyncio.get_running_loop().time()), self.making, self.recording)

    def replicate(self) -> None:
        """Tell the standby, before anybody else, what has changed in the logic; its end is in the register."""
        if self.feed is not None and self.logic.state is not State.ENDED:
            self.feed.put_change()

    def changes(self, block: Block | None) -> PendingDelta | None:
        """What is new in the stream for the standby since a block, if one came out; None without a standby."""
        feed, ready = self.feed, None if block is None else block.ready
        return None if feed is None else feed.source.changes(ready)

    # How it stands

    def describe(self, *, cues: bool = True) -> pb.Session:
        """The `Session` message, with as many of its cues as any client can take in one."""
        logic, spec = self.logic, self.spec
        return pb.Session(
            id=self.id,
            state=pb.SessionState.Name(logic.state.value),
            suspended=logic.suspended,
            options=write_options(spec),
            take=logic.take,
            next_frame=logic.earliest_frame,
            current_start_frame=logic.delivered_frames,
            shown_frame=logic.shown_frame(asyncio.get_running_loop().time()),
            prompt=logic.prompt,
            pending=next_cues(logic) if cues else [],
            pending_count=len(logic.pending),
            applied=recent_cues(logic.applied) if cues else [],
            applied_count=len(logic.applied),
            viewers=self.audience.viewers,
            recording=self.recording.written,
            waiting=pb.WaitReason.Name(self.waiting.value),
            broken_picture=self.broken_picture,
            oldest_frame=self.audience.oldest_frame,
            create_time=Timestamp(seconds=int(spec.created), nanos=int(spec.created % 1 * 1e9)),
            replica=self.replica,
            held_fps=self.watch.held_fps or 0.0,
            provenance=self.provenance if cues else None,
            resumed=self.resumed,
            first_block_frames=self.config.blocks.pixel_frames_of(0),
            block_frames=self.config.blocks.pixel_frames_of(1),
            loop=pb.VIDEO_LOOP_UNSPECIFIED if self.input is None else LOOPS[self.loop],
            restyling=None if self.input is None else self.input.restyling(),
        )

    def queued_blocks(self, now: float) -> int:
        """Blocks delivered behind the one that is being shown."""
        shown = max(self.logic.shown_frame(now), 0)
        return sum(1 for chunk in self.audience.kept if chunk.first_frame > shown)


@asynccontextmanager
async def at_rest(session: ActiveSession, wake: Callable[[], None]) -> AsyncIterator[None]:
    """Nothing of the session is on its way: its logic and its stream stand at the same block."""
    session.held += 1
    try:
        wake()
        while session.is_busy or session.undelivered or session.waits_for_flush:
            await asyncio.sleep(0.005)
        yield
    finally:
        session.held -= 1
        wake()


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
    if isinstance(stream, VideoStreamConfig):
        options.input, options.fit = pb.INPUT_KIND_VIDEO, FITS[spec.fit]
        options.noise_scale = stream.noise_scale
    else:
        options.input = pb.INPUT_KIND_NONE
    options.lease.FromMilliseconds(round(pace.lease_s * 1000))
    return options
