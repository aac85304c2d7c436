"""The way of a block on a denoiser's replica: whose is next, its prompt, its passes, its pictures.

One thread makes blocks, and a session's block is decoded and sent while its next one is made. At most two blocks
of a session are on their way at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from engines.device.event_timer import Lap
from engines.errors import EngineError
from engines.streaming.generator import Generator
from engines.streaming.replica_log import PendingDelta
from engines.streaming.state import Block
from serving.errors import ReplicaLost, ServingError, SlotsFull
from serving.media.chunk import Chunk
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.engine_errors import refusal
from serving.pipeline.stages import DecoderStage, TextEncoderStage, in_thread
from serving.protocol.convert import write_applied
from serving.session.state_machine import BlockPlan
from serving.worker.active_session import ActiveSession
from serving.worker.delivery import decoder_start
from serving.worker.metrics import Metrics
from serving.worker.scheduler import Candidate, Scheduler

logger = logging.getLogger(__name__)

MOST_UNDELIVERED = 2
PROMPTS_AHEAD_BLOCKS = 2
LONGEST_WAIT_S = 0.5
DECODER_TRIES = 3


class _Made(NamedTuple):
    """A block that goes on to be decoded, and what is new in its stream for those who mirror it.

    `lap` is the time of the passes, which one of those that shared them has.
    """

    session: ActiveSession
    plan: BlockPlan
    block: Block
    changes: PendingDelta | None
    lap: Lap | None


class BlockLoop:
    """Makes the blocks of all sessions that `sessions` returns, for as long as `run` runs."""

    def __init__(
        self,
        generator: Generator,
        text: TextEncoderStage,
        pictures: DecoderStage,
        executor: Executor,
        sessions: Callable[[], Iterable[ActiveSession]],
        end: Callable[[ActiveSession, ServingError | None], None],
        metrics: Metrics,
    ) -> None:
        self._generator = generator
        self._text = text
        self._decoder = pictures
        self._executor = executor
        self._sessions = sessions
        self._end = end
        self._metrics = metrics
        self._scheduler = Scheduler(generator.batch)
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something has changed: a command, a report, a viewer."""
        self._wake.set()

    async def run(self) -> None:
        """Make blocks until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            self._prepare_prompts()
            candidates = self._candidates(now)
            if picked := self._scheduler.pick(candidates, now):
                by_id = {session.id: session for session in self._sessions()}
                await self._make([by_id[candidate.key] for candidate in picked])
            elif idle := self._unsettled():
                await self._settle(idle)
            else:
                await self._sleep(candidates, now)

    # Whose block is next

    def _candidates(self, now: float) -> list[Candidate]:
        found = []
        for session in self._sessions():
            if session.closed or session.held or session.making or session.undelivered >= MOST_UNDELIVERED:
                continue
            due = session.logic.due(now)
            if due is not None and session.has_prompts():
                shape = (session.config.height, session.config.width, session.config.steps)
                found.append(Candidate(session.id, shape, session.logic.deadline(now), due))
        return found

    async def _sleep(self, candidates: Sequence[Candidate], now: float) -> None:
        next_due = min((candidate.due for candidate in candidates), default=now + LONGEST_WAIT_S)
        self._wake.clear()
        wait = min(max(next_due - now, 0.0005), LONGEST_WAIT_S)
        # `wait_for` would forget that it was cancelled if it was woken at the same moment.
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._wake.wait()

    # Prompts

    def _prepare_prompts(self) -> None:
        """Begin to encode what the next blocks need, so that none of them waits for it."""
        for session in self._sessions():
            if session.encoding is not None or session.closed:
                continue
            texts = [t for t in session.upcoming_texts(PROMPTS_AHEAD_BLOCKS) if t not in session.prompts]
            if texts:
                session.encoding = asyncio.create_task(self._encode(session, texts))

    async def _encode(self, session: ActiveSession, texts: Sequence[str]) -> None:
        """A text that cannot be encoded now is tried again; the session's clock waits for it."""
        try:
            for text in texts:
                session.prompts[text] = await self._text.encode(text)
        except ReplicaLost as error:
            logger.warning("prompts wait for a text encoder", extra={"session": session.id, "why": str(error)})
            await asyncio.sleep(LONGEST_WAIT_S)
        except ServingError as error:
            self._end(session, error)
        finally:
            session.encoding = None
            self.wake()

    # Passes

    async def _make(self, sessions: Sequence[ActiveSession]) -> None:
        """Begin one block for each of `sessions`, and send it on its way."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        begun = {session.id: plan for session in sessions if (plan := self._begin(session, began))}
        if not begun:
            return
        sessions, plans = [session for session in sessions if session.id in begun], list(begun.values())
        for session, plan in zip(sessions, plans, strict=True):
            session.making = True
            self._announce(session, plan)
        try:
            made = await self._passes(sessions, plans)
        finally:
            for session in sessions:
                session.making = False
        for one in made:
            before = one.session.delivering
            one.session.undelivered += 1
            one.session.delivering = asyncio.create_task(self._deliver(one, before, began))

    def _begin(self, session: ActiveSession, now: float) -> BlockPlan | None:
        """The plan of a session's next block; None where its log cannot be written, which ends it."""
        try:
            return session.logic.begin_block(now)
        except ServingError as error:
            self._end(session, error)
            return None

    async def _passes(self, sessions: Sequence[ActiveSession], plans: Sequence[BlockPlan]) -> list[_Made]:
        """The blocks that could be made. Where a batch fails each is made alone, and only who fails again ends."""
        try:
            return await in_thread(self._executor, partial(self._generate, sessions, plans))
        except EngineError as error:
            if len(sessions) == 1:
                sessions[0].logic.give_up_block(plans[0])
                self._end(sessions[0], refusal(error))
                return []
        alone = [await self._passes([session], [plan]) for session, plan in zip(sessions, plans, strict=True)]
        return [made for one in alone for made in one]

    def _generate(self, sessions: Sequence[ActiveSession], plans: Sequence[BlockPlan]) -> list[_Made]:
        """In the executor: prompts, passes, and what is new for those who mirror."""
        for session, plan in zip(sessions, plans, strict=True):
            if plan.step is None:
                continue
            prompt = session.track.take(plan.step)
            if session.stream.prompt is None or session.stream.prompt.text != prompt.text:
                self._generator.set_prompt(session.stream, prompt)
        lap = Lap(self._generator.cache.device)
        blocks = self._generator.generate([session.stream for session in sessions])
        lap.stop()
        changes = [session.changes(block) for session, block in zip(sessions, blocks, strict=True)]
        laps = [lap, *[None] * (len(sessions) - 1)]
        return [_Made(*one) for one in zip(sessions, plans, blocks, changes, laps, strict=True)]

    def _announce(self, session: ActiveSession, plan: BlockPlan) -> None:
        if plan.step is not None:
            session.forget_prompts(text for text, _ in plan.step.target.parts)
        session.publish_receipts(plan.receipts)
        if plan.applied is not None:
            session.publish(applied=write_applied(plan.applied))

    def _unsettled(self) -> ActiveSession | None:
        """A session whose clean pass can be run now; one that is to be recached will not need it."""
        for session in self._sessions():
            if session.closed or session.held or session.making or not session.stream.context_due:
                continue
            if not session.upcoming_texts(1):
                return session
        return None

    async def _settle(self, session: ActiveSession) -> None:
        session.making = True
        try:
            await in_thread(self._executor, partial(self._generator.write_context, [session.stream]))
        except EngineError as error:
            self._end(session, refusal(error))
        finally:
            session.making = False

    # Pictures

    async def _deliver(self, made: _Made, before: asyncio.Task[None] | None, began: float) -> None:
        """Decode a block and send it, after the one before it.

        It is sent together with what is new in its stream: what a viewer has seen outlives the replica.
        """
        session, plan, changes = made.session, made.plan, made.changes
        if before is not None:
            await before
        try:
            chunk = await self._decode(session, made.block)
            update = None if changes is None else await asyncio.to_thread(changes.update)
        except ServingError as error:
            self._end(session, error)
            return
        finally:
            session.undelivered -= 1
            self.wake()
        # The pictures are here, so the passes they are made from are over.
        if made.lap is not None and (seconds := made.lap.seconds) is not None:
            self._metrics.stage("denoise", seconds)
        if session.closed:
            return
        now = asyncio.get_running_loop().time()
        self._metrics.block(late=session.logic.delivered(plan, now))
        session.publish_chunk(chunk)
        self._time(session, plan, now)
        frames = len(chunk.units)
        session.publish(
            progress=pb.Progress(
                current_start_frame=session.logic.delivered_frames,
                generated_fps=frames / max(now - began, 1e-6),
                queued_blocks=session.queued_blocks(now),
            )
        )
        session.remember(chunk, update)

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

    async def _decode(self, session: ActiveSession, block: Block) -> Chunk:
        """The chunk of `block`; where its decoder is lost, from another one."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(DECODER_TRIES):
            try:
                return await self._decoder.decode(session.decoder_key, block)
            except ReplicaLost as lost:
                logger.warning(
                    "decoder lost", extra={"session": session.id, "block": block.number, "why": str(lost)}
                )
                await self._reopen(session, block)
                frame = session.config.blocks.pixel_frames(block.number)
                resumed = pb.Resumed(frame=frame, reason=f"another video decoder: {lost}")
                resumed.silence.FromMilliseconds(round(1000 * (loop.time() - began)))
                session.publish(resumed=resumed)
                self._metrics.resumed("decoder")
        raise ReplicaLost(f"no video decoder could be had for block {block.number} in {DECODER_TRIES} tries")

    async def _reopen(self, session: ActiveSession, block: Block) -> None:
        """Open the session on another decoder, which sees the latents before `block` first."""
        try:
            place = await in_thread(self._executor, partial(decoder_start, session, block.number))
            # Latents of earlier blocks were there before this one's.
            await self._decoder.open(session.decoder_key, place._replace(ready=block.ready))
        except (ReplicaLost, SlotsFull) as error:
            logger.warning("no decoder yet", extra={"session": session.id, "why": str(error)})
            await asyncio.sleep(LONGEST_WAIT_S)
