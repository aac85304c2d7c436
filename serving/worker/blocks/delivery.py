"""From a block that was made to the chunk that its viewers see."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from engines.device.event_timer import Lap
from engines.streaming.replica_log import PendingDelta, SnapshotDelta
from engines.streaming.state import Block
from serving.background_tasks import BackgroundTasks
from serving.errors import ReplicaDied, ReplicaLost, SessionFailed, SlotsFull
from serving.media.chunk import Chunk
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.stages import DecoderStage, in_thread
from serving.pipeline.video_decoder import DecoderStart
from serving.replication.messages import BlockPictures
from serving.session.state_machine import BlockPlan
from serving.tracing.tracer import UNTRACED_BLOCK, BlockSpan, Tracer
from serving.worker.capacity.capacity import Capacity
from serving.worker.state.active_session import ActiveSession, BegunBlock
from serving.worker.state.metrics import Metrics
from serving.worker.state.session_guard import SessionGuard
from serving.worker.streams.standby_feed import StandbyFeed

logger = logging.getLogger(__name__)

Send = Callable[[], Coroutine[Any, Any, None]]

RETRY_S = 0.5
STANDBY_S = 30.0
"""For so long a span waits for the standby's word."""


class Pass(NamedTuple):
    """A session's part of passes that have been run.

    `lap` is their time, which `sharing` sessions shared; `submitted`, by `time.monotonic()`, is when the device
    was given them. `changes` is what is new in the stream for the standby, and `pictures` are those with which a
    block has begun in these passes.
    """

    changes: PendingDelta | None
    lap: Lap
    submitted: float
    sharing: int
    pictures: BlockPictures | None = None


class MadeBlock(NamedTuple):
    """A block that goes on to be decoded, and the passes with which it came out.

    `settled` is the time of the clean pass that was run by itself before them. Of blocks that came out together
    the last one has what is new for the standby.
    """

    session: ActiveSession
    begun: BegunBlock
    block: Block
    made_by: Pass
    settled: Lap | None = None
    is_last: bool = True


class Delivery:
    """Has blocks decoded and sends their chunks, one after the other, once their session has a lease.

    A session whose decoder is lost waits up to `restart_s` for another one. Those whose decoder has died go on one
    at a time, so that it is known whose block the next one dies of: that session ends.
    """

    def __init__(
        self,
        decoder: DecoderStage,
        executor: Executor,
        leased: Callable[[ActiveSession], Awaitable[bool]],
        guard: SessionGuard,
        wake: Callable[[], None],
        metrics: Metrics,
        capacity: Capacity,
        restart_s: float,
        tracer: Tracer,
    ) -> None:
        self._restart_s = restart_s
        self._decoder = decoder
        self._executor = executor
        self._leased = leased
        self._guard = guard
        self._wake = wake
        self._metrics = metrics
        self._capacity = capacity
        self._tracer = tracer
        self._background = BackgroundTasks()
        self._bereft = asyncio.Lock()

    def begin(self, made: MadeBlock) -> None:
        """Send a block on its way, behind the one before it."""
        block = made.begun.plan.block
        self._begin(made.session, f"delivering block {block}", made.begun.span, partial(self._send, made))

    def begin_changes(self, session: ActiveSession, made_by: Pass) -> None:
        """Tell the standby what is new in a stream of which no block has come out, behind the block before."""
        send = partial(self._send_changes, session, made_by)
        self._begin(session, "telling the standby", UNTRACED_BLOCK, send)

    def _begin(self, session: ActiveSession, what: str, span: BlockSpan, send: Send) -> None:
        session.undelivered += 1
        delivering = self._deliver(session, what, span, send, session.delivering)
        session.delivering = self._background.start(what, delivering, session=session.id)

    async def _deliver(
        self, session: ActiveSession, what: str, span: BlockSpan, send: Send, before: asyncio.Task[None] | None
    ) -> None:
        try:
            with self._guard.working(session, what), ended(span):
                if before is not None:
                    await before
                await send()
        finally:
            session.undelivered -= 1
            self._wake()

    async def _send(self, made: MadeBlock) -> None:
        """What a viewer has seen outlives the replica: the standby is told before anybody else."""
        session, begun = made.session, made.begun
        plan, span = begun.plan, begun.span
        if session.closed or session.ending:
            return
        decoded = await self._decode(session, made.block, span)
        chunk = replace(decoded, pictures=begun.pictures, loop=begun.loop)
        decoded_at = time.monotonic()
        update = await _update(made.made_by)
        self._learn(made)
        if not await self._leased(session):
            return
        now = asyncio.get_running_loop().time()
        slack = session.logic.slack(plan, now) if begun.due is None else begun.due - now
        session.logic.delivered(plan, now)
        late = slack is not None and slack < 0
        self._metrics.block(late=late, slack_s=slack)
        self._replicate(made, chunk, update)
        session.audience.publish_chunk(chunk)
        self._tracer.stage(span.traceparent, "deliver", decoded_at, time.monotonic(), {"longtake.late": late})
        self._time(session, plan, now)
        session.audience.publish(
            progress=pb.Progress(
                current_start_frame=session.logic.delivered_frames,
                generated_fps=len(chunk.units) / max(now - begun.began, 1e-6),
                queued_blocks=session.queued_blocks(now),
                input=None if session.input is None else session.input.progress(),
            )
        )
        if (pace := session.watch.delivered(len(chunk.units), now, late=late)) is not None:
            self._tell_pace(session, pace, now)

    async def _send_changes(self, session: ActiveSession, made_by: Pass) -> None:
        update = await _update(made_by)
        if update is not None and session.feed is not None and await self._leased(session):
            session.feed.put_block(None, update, made_by.pictures)

    def _tell_pace(self, session: ActiveSession, fps: float, now: float) -> None:
        """The pace that is held has become another one."""
        stream = session.cost_config
        takes = self._capacity.denoising.expect(stream, now) + self._capacity.delivering.expect(stream, now)
        if session.watch.held_fps is None:
            reason = f"the session is made at its {session.logic.pace.fps} frames/s again"
        else:
            reason = (
                f"the replica has too much to do for {session.logic.pace.fps} frames/s: "
                f"a block takes {takes:.2f} s at the moment"
            )
        extra = {"session": session.id, "held_fps": round(fps, 1), "fps": session.logic.pace.fps}
        logger.info("pace", extra=extra)
        session.audience.publish(slowed=pb.Slowed(held_fps=fps, reason=reason))

    def _learn(self, made: MadeBlock) -> None:
        """What the block took. The pictures are here, so the passes that they are made from are over."""
        session, stream, now = made.session, made.session.cost_config, asyncio.get_running_loop().time()
        made_by, span = made.made_by, made.begun.span
        if (seconds := made_by.lap.seconds) is not None:
            own = seconds / made_by.sharing
            sharing = {"longtake.sharing": made_by.sharing}
            over = made_by.submitted + seconds
            self._tracer.stage(span.traceparent, "denoise", made_by.submitted, over, sharing)
            self._metrics.stage("denoise", own)
            if made.settled is not None:
                own += made.settled.seconds or 0.0
            # Before the window is full a block takes less; more than was estimated is more all the same.
            is_full = made.begun.plan.block - session.opening >= stream.blocks.blocks_of(stream.window_frames)
            denoising = self._capacity.denoising
            if is_full or (denoising.is_estimate(stream) and own > denoising.expect(stream, now)):
                denoising.observe(stream, own, now)
        if (delivering := self._decoder.block_seconds(session.decoder_key)) is not None:
            self._capacity.delivering.observe(stream, delivering, now)

    def _replicate(self, made: MadeBlock, chunk: Chunk, update: SnapshotDelta | None) -> None:
        session, span = made.session, made.begun.span
        # A standby that came after the block was begun has it in the full state that it is sent.
        if session.feed is not None and (update is not None or not made.is_last):
            session.feed.put_block(chunk, update, made.made_by.pictures)
            if span.traceparent is not None:
                watching = self._trace_standby(session.feed, span.traceparent)
                self._background.start("watching a standby", watching, session=session.id)

    async def _trace_standby(self, feed: StandbyFeed, traceparent: str) -> None:
        """Tell when the standby has acknowledged the block that it was sent last."""
        began = time.monotonic()
        if await feed.replicated(STANDBY_S):
            self._tracer.stage(traceparent, "standby", began, time.monotonic())

    def _time(self, session: ActiveSession, plan: BlockPlan, now: float) -> None:
        """Count how long the viewers waited for a chunk that was sent just now, and who asked for a cue in it."""
        if session.delivered_at is not None:
            self._metrics.interval(now - session.delivered_at)
        session.delivered_at = now
        if plan.applied is not None:
            frame = plan.applied.cue.frame
            if (asked := session.asked_now.get(frame)) is not None:
                self._metrics.command_to_frame(now - asked)
            session.asked_now = {later: at for later, at in session.asked_now.items() if later > frame}

    async def _decode(self, session: ActiveSession, block: Block, span: BlockSpan) -> Chunk:
        """The chunk of `block`; where its decoder is lost or is being taken away, from another one."""
        now = asyncio.get_running_loop().time
        began = now()
        if await self._decoder.is_leaving(session.decoder_key):
            await self._reopen(session, block, "the one before is being taken away", began, moves=True)
        async with AsyncExitStack() as alone:
            has_died = False
            while True:
                try:
                    return await self._decoder.decode(session.decoder_key, block, span.traceparent)
                except ReplicaLost as lost:
                    extra = {"session": session.id, "block": block.number, "why": str(lost)}
                    logger.warning("decoder lost", extra=extra)
                    if session.closed:
                        raise
                    if isinstance(lost, ReplicaDied):
                        if has_died:
                            raise SessionFailed(f"two video decoders died of block {block.number}") from lost
                        has_died = True
                        await alone.enter_async_context(self._bereft)
                    if now() - began > self._restart_s:
                        raise ReplicaLost(f"no video decoder could be had within {self._restart_s:g} s") from lost
                    if not await self._reopen(session, block, str(lost), began):
                        await asyncio.sleep(RETRY_S)

    async def _reopen(
        self, session: ActiveSession, block: Block, why: str, began: float, *, moves: bool = False
    ) -> bool:
        """Open the session on another decoder, which sees the latents before `block` first; False if none is."""
        try:
            start = await in_thread(self._executor, partial(decoder_start, session, block.number))
            # Latents of earlier blocks were there before this one's.
            start = start._replace(ready=block.ready)
            await self._decoder.open(session.decoder_key, start, moves=moves)
        except (ReplicaLost, SlotsFull) as error:
            logger.warning("no decoder yet", extra={"session": session.id, "why": str(error)})
            return False
        if session.closed:
            # It ended meanwhile, and closed the decoder that it had then.
            await self._decoder.close(session.decoder_key)
        resumed = pb.Resumed(
            frame=session.config.blocks.pixel_frames(block.number), reason=f"another video decoder: {why}"
        )
        resumed.silence.FromMilliseconds(round(1000 * (asyncio.get_running_loop().time() - began)))
        session.audience.publish(resumed=resumed)
        self._metrics.decoder_changed(planned=moves)
        return True


@contextmanager
def ended(span: BlockSpan) -> Iterator[None]:
    """The span ends with the work, and says what that failed with."""
    try:
        yield
    except Exception as error:
        span.end(str(error))
        raise
    span.end()


async def _update(made_by: Pass) -> SnapshotDelta | None:
    changes = made_by.changes
    return None if changes is None else await asyncio.to_thread(changes.update)


def decoder_start(session: ActiveSession, block: int) -> DecoderStart:
    """Where a decoder begins in order to decode `block` next."""
    stream = session.stream
    first_kept = stream.blocks - len(stream.recent)
    first_frame = session.config.blocks.pixel_frames(block)
    return DecoderStart(block, first_frame, list(stream.recent)[: block - first_kept])
