"""The making of blocks on one device: whose is next, its prompt, its passes.

One thread makes blocks, and a session's block is decoded and sent while its next one is made. At most two blocks
of a session are on their way at a time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import torch

from engines.device.event_timer import Lap
from engines.errors import EngineError
from engines.streaming.replica_log import PendingDelta
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.video.stream import VideoStream
from engines.video.stream_engine import StreamEngine
from serving.errors import ServingError, SessionFailed
from serving.pipeline.engine_errors import refusal
from serving.pipeline.stages import in_thread
from serving.session.state_machine import BlockPlan, State
from serving.tracing.tracer import Tracer
from serving.worker.active_session import ActiveSession
from serving.worker.capacity.capacity import Capacity
from serving.worker.capacity.pass_watch import PassWatch
from serving.worker.delivery import Delivery, MadeBlock
from serving.worker.pictures.session_input import EncodedInput
from serving.worker.prompt_prefetch import PromptPrefetch
from serving.worker.scheduler import Candidate, Scheduler, Urgency

logger = logging.getLogger(__name__)

MOST_UNDELIVERED = 2
LONGEST_WAIT_S = 0.5


class _Begun(NamedTuple):
    """A session's next block: what falls on it, and the pictures that it is made from, if it is."""

    session: ActiveSession
    plan: BlockPlan
    made_from: EncodedInput | None = None


class _Pass(NamedTuple):
    """A session's part of a pass that has been run."""

    block: Block
    changes: PendingDelta | None
    lap: Lap
    submitted: float


class BlockLoop:
    """Makes the blocks of those of `sessions` that have a lease, for as long as `run` runs.

    `end` is told of a session whose block cannot be made, and why, and `encode_more` of one whose pictures can be
    encoded for another block.
    """

    def __init__(
        self,
        engine: StreamEngine,
        executor: Executor,
        sessions: Callable[[], Iterable[ActiveSession]],
        has_lease: Callable[[ActiveSession], bool],
        end: Callable[[ActiveSession, ServingError | None], None],
        encode_more: Callable[[ActiveSession], None],
        capacity: Capacity,
        tracer: Tracer,
    ) -> None:
        self._engine = engine
        self._encode_more = encode_more
        self._capacity = capacity
        self._tracer = tracer
        self._executor = executor
        self._sessions = sessions
        self._has_lease = has_lease
        self._end = end
        self._scheduler = Scheduler(engine.text.batch)
        self._wake = asyncio.Event()
        self._free_at = 0.0
        self.watch = PassWatch()

    def wake(self) -> None:
        """Something has changed: a command, a report, a viewer, a lease."""
        self._wake.set()

    async def run(self, prompts: PromptPrefetch, delivery: Delivery) -> None:
        """Make blocks until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            for session in self._sessions():
                prompts.begin(session)
            candidates = self._candidates(now)
            if picked := self._scheduler.pick(candidates, now, self._free_at):
                by_attempt = {session.attempt: session for session in self._sessions()}
                await self._make([by_attempt[candidate.key] for candidate in picked], delivery)
                self._give(sum(candidate.cost for candidate in picked), now)
            elif idle := self._unsettled(candidates, now):
                await self._settle(idle)
            else:
                await self._sleep(candidates, now)

    # Whose block is next

    def _candidates(self, now: float) -> list[Candidate]:
        expect = self._capacity.delivering.expect
        backlog = sum(session.undelivered * expect(session.config, now) for session in self._sessions())
        return [
            self._candidate(session, backlog, now)
            for session in self._sessions()
            if session.logic.state is State.RUNNING
            and not (session.held or session.ending)
            and self._has_lease(session)
        ]

    def _candidate(self, session: ActiveSession, backlog_s: float, now: float) -> Candidate:
        """A session that runs. Where no block of it can be made now, that is due once something has happened.

        What is made now is decoded once the `backlog_s` is.
        """
        logic, stream = session.logic, session.config
        ready = session.is_idle and session.undelivered < MOST_UNDELIVERED and session.has_prompts()
        due = session.due(now) if ready else None
        if due is not None and due <= now:
            session.ready_since = min(session.ready_since, now)
        expected = session.expected()
        if expected is not None:
            delivery_s = backlog_s + self._capacity.delivering.expect(stream, now)
            urgency, deadline = Urgency.CLOCKED, expected - delivery_s
        else:
            urgency = Urgency.WAITING if logic.pace.fps else Urgency.UNPACED
            deadline = logic.patience()
        shape = (type(stream), stream.height, stream.width, stream.steps)
        cost = self._capacity.block_s(stream, now)
        return Candidate(session.attempt, shape, deadline, math.inf if due is None else due, urgency, cost)

    def _give(self, seconds: float, now: float) -> None:
        """Note until when the device works; on a CPU what it was given is done."""
        if self._engine.device.type == "cuda":
            self._free_at = max(self._free_at, now) + seconds

    async def _sleep(self, candidates: Sequence[Candidate], now: float) -> None:
        # One that is due and was not picked would make others late, until the next of those has had its block.
        next_due = min((candidate.due for candidate in candidates if candidate.due > now), default=math.inf)
        self._wake.clear()
        wait = min(max(next_due - now, 0.0005), LONGEST_WAIT_S)
        # `wait_for` would forget that it was cancelled if it was woken at the same moment.
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._wake.wait()

    # Passes

    async def _make(self, sessions: Sequence[ActiveSession], delivery: Delivery) -> None:
        """Begin one block for each of `sessions`, and send it on its way."""
        now = asyncio.get_running_loop().time()
        begun = [one for session in sessions if (one := self._begin(session, now))]
        if not begun:
            return
        for session, plan, _ in begun:
            session.making = plan.block
            self._trace(session, plan, now)
            self._announce(session, plan)
        try:
            made = await self._passes(begun, now)
        finally:
            for session, _, _ in begun:
                session.making = None
        for block in made:
            delivery.begin(block)

    def _begin(self, session: ActiveSession, now: float) -> _Begun | None:
        """A session's next block; None where its log cannot be written, which ends it."""
        try:
            plan = session.logic.begin_block(now)
        except ServingError as error:
            self._end(session, error)
            return None
        if session.input is None:
            return _Begun(session, plan)
        made_from = session.input.take(None if plan.step is None else plan.step.restyling)
        self._encode_more(session)
        return _Begun(session, plan, made_from)

    async def _passes(self, begun: Sequence[_Begun], began: float) -> list[MadeBlock]:
        """The blocks that could be made. Where a batch fails each is made alone, and only who fails again ends."""
        try:
            usual = sum(self._capacity.denoising.expect(one.session.config, began) for one in begun)
            with self.watch.running(asyncio.get_running_loop().time, usual):
                passes = await in_thread(self._executor, partial(self._generate, begun))
        except torch.AcceleratorError:
            # The device is in an unknown state, and so is whatever is on it.
            raise
        except Exception as error:
            if len(begun) == 1:
                self._give_up(begun[0], error)
                return []
        else:
            return [
                MadeBlock(
                    session, plan, *result, len(begun), began, session.take_settled(), session.span, made_from
                )
                for (session, plan, made_from), result in zip(begun, passes, strict=True)
            ]
        alone = [await self._passes([one], began) for one in begun]
        return [made for one in alone for made in one]

    def _give_up(self, begun: _Begun, error: Exception) -> None:
        session, plan, _ = begun
        session.logic.give_up_block(plan)
        session.span.end(str(error))
        if isinstance(error, EngineError):
            self._end(session, refusal(error))
            return
        extra = {"session": session.id, "block": plan.block}
        logger.error("a block could not be made", extra=extra, exc_info=error)
        self._end(session, SessionFailed.of(f"making block {plan.block}", error))

    def _generate(self, begun: Sequence[_Begun]) -> list[_Pass]:
        """In the executor: prompts, passes, and what is new for the standbys."""
        for session, plan, _ in begun:
            if plan.step is None:
                continue
            prompt = session.track.take(plan.step)
            if plan.step.restyling is not None and plan.step.restyling.renews_sink:
                self._engine.renew_sink(session.stream)
            if session.stream.prompt is None or session.stream.prompt.text != prompt.text:
                self._engine.set_prompt(session.stream, prompt)
        submitted = time.monotonic()
        lap = Lap(self._engine.device)
        blocks = self._blocks(begun)
        lap.stop()
        changes = [one.session.changes(block) for one, block in zip(begun, blocks, strict=True)]
        return [_Pass(block, change, lap, submitted) for block, change in zip(blocks, changes, strict=True)]

    def _blocks(self, begun: Sequence[_Begun]) -> list[Block]:
        """Of sessions that are all of one kind."""
        inputs = [one.made_from.block for one in begun if one.made_from is not None]
        streams = [one.session.stream for one in begun]
        if not inputs:
            return self._engine.text.generate([stream for stream in streams if isinstance(stream, Stream)])
        videos = [stream for stream in streams if isinstance(stream, VideoStream)]
        # In a plain loop a block comes out of the call in which it began.
        return [block for block in self._engine.video.generate(videos, inputs) if block is not None]

    def _trace(self, session: ActiveSession, plan: BlockPlan, began: float) -> None:
        """Begin the span of a block; of prompts that come into force with it, that of their encoding is there."""
        waited, session.ready_since = began - session.ready_since, math.inf
        attributes: dict[str, str | int | float] = {
            "session.id": session.id,
            "longtake.replica": session.replica,
            "longtake.take": session.logic.take,
            "longtake.block": plan.block,
            "longtake.first_frame": plan.first_frame,
            "longtake.frames": plan.end_frame - plan.first_frame,
            "longtake.waited_s": waited,
        }
        if plan.applied is not None:
            attributes["longtake.cue_frame"] = plan.applied.cue.frame
        session.span = self._tracer.block(attributes)
        for text, _ in () if plan.step is None else plan.step.target.parts:
            if (times := session.encoded_at.pop(text, None)) is not None:
                self._tracer.stage(session.span.traceparent, "prompt", *times)

    def _announce(self, session: ActiveSession, plan: BlockPlan) -> None:
        if plan.step is not None:
            session.forget_prompts(text for text, _ in plan.step.target.parts)
        session.replicate()
        session.publish_applied(plan)

    def _unsettled(self, candidates: Sequence[Candidate], now: float) -> ActiveSession | None:
        """A session whose clean pass can be run now; one that is to be recached will not need it."""
        at = max(now, self._free_at)
        for session in self._sessions():
            if not session.is_idle or not session.context_due or not self._has_lease(session):
                continue
            one_pass = self._capacity.denoising.expect(session.config, now) / session.config.passes
            if not session.upcoming_texts(1) and self._scheduler.leaves_time(one_pass, candidates, at):
                return session
        return None

    async def _settle(self, session: ActiveSession) -> None:
        clock = asyncio.get_running_loop().time
        session.settling = True
        try:
            with self.watch.running(clock, self._capacity.denoising.expect(session.config, clock())):
                session.settled = await in_thread(self._executor, partial(self._write_context, session))
        except torch.AcceleratorError:
            raise
        except EngineError as error:
            self._end(session, refusal(error))
        except Exception as error:
            logger.exception("a clean pass could not be made", extra={"session": session.id})
            self._end(session, SessionFailed.of("a clean pass", error))
        finally:
            session.settling = False

    def _write_context(self, session: ActiveSession) -> Lap:
        lap = Lap(self._engine.device)
        if isinstance(session.stream, Stream):
            self._engine.text.write_context([session.stream])
        lap.stop()
        return lap
