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
from engines.streaming.generator import Generator
from engines.streaming.replica_log import PendingDelta
from engines.streaming.state import Block
from serving.errors import ServingError, SessionFailed
from serving.pipeline.engine_errors import refusal
from serving.pipeline.stages import in_thread
from serving.session.state_machine import BlockPlan, State
from serving.tracing.tracer import Tracer
from serving.worker.active_session import ActiveSession
from serving.worker.capacity.capacity import Capacity
from serving.worker.capacity.pass_watch import PassWatch
from serving.worker.delivery import Delivery, MadeBlock
from serving.worker.prompt_prefetch import PromptPrefetch
from serving.worker.scheduler import Candidate, Scheduler, Urgency

logger = logging.getLogger(__name__)

MOST_UNDELIVERED = 2
LONGEST_WAIT_S = 0.5


class _Pass(NamedTuple):
    """A session's part of a pass that has been run."""

    block: Block
    changes: PendingDelta | None
    lap: Lap
    submitted: float


class BlockLoop:
    """Makes the blocks of those of `sessions` that have a lease, for as long as `run` runs.

    `end` is told of a session whose block cannot be made, and why.
    """

    def __init__(
        self,
        generator: Generator,
        executor: Executor,
        sessions: Callable[[], Iterable[ActiveSession]],
        has_lease: Callable[[ActiveSession], bool],
        end: Callable[[ActiveSession, ServingError | None], None],
        capacity: Capacity,
        tracer: Tracer,
    ) -> None:
        self._generator = generator
        self._capacity = capacity
        self._tracer = tracer
        self._executor = executor
        self._sessions = sessions
        self._has_lease = has_lease
        self._end = end
        self._scheduler = Scheduler(generator.batch)
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
        due = logic.due(now) if ready else None
        if due is not None and due <= now:
            session.ready_since = min(session.ready_since, now)
        expected = logic.expected()
        if expected is not None:
            delivery_s = backlog_s + self._capacity.delivering.expect(stream, now)
            urgency, deadline = Urgency.CLOCKED, expected - delivery_s
        else:
            urgency = Urgency.WAITING if logic.pace.fps else Urgency.UNPACED
            deadline = logic.patience()
        shape = (stream.height, stream.width, stream.steps)
        cost = self._capacity.block_s(stream, now)
        return Candidate(session.attempt, shape, deadline, math.inf if due is None else due, urgency, cost)

    def _give(self, seconds: float, now: float) -> None:
        """Note until when the device works; on a CPU what it was given is done."""
        if self._generator.cache.device.type == "cuda":
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
        began = asyncio.get_running_loop().time()
        begun = {session.attempt: plan for session in sessions if (plan := self._begin(session, began))}
        if not begun:
            return
        sessions, plans = [session for session in sessions if session.attempt in begun], list(begun.values())
        for session, plan in zip(sessions, plans, strict=True):
            session.making = plan.block
            self._trace(session, plan, began)
            self._announce(session, plan)
        try:
            made = await self._passes(sessions, plans, began)
        finally:
            for session in sessions:
                session.making = None
        for block in made:
            delivery.begin(block)

    def _begin(self, session: ActiveSession, now: float) -> BlockPlan | None:
        """The plan of a session's next block; None where its log cannot be written, which ends it."""
        try:
            return session.logic.begin_block(now)
        except ServingError as error:
            self._end(session, error)
            return None

    async def _passes(
        self, sessions: Sequence[ActiveSession], plans: Sequence[BlockPlan], began: float
    ) -> list[MadeBlock]:
        """The blocks that could be made. Where a batch fails each is made alone, and only who fails again ends."""
        try:
            usual = sum(self._capacity.denoising.expect(session.config, began) for session in sessions)
            with self.watch.running(asyncio.get_running_loop().time, usual):
                passes = await in_thread(self._executor, partial(self._generate, sessions, plans))
        except torch.AcceleratorError:
            # The device is in an unknown state, and so is whatever is on it.
            raise
        except Exception as error:
            if len(sessions) == 1:
                self._give_up(sessions[0], plans[0], error)
                return []
        else:
            together = zip(sessions, plans, passes, strict=True)
            return [
                MadeBlock(session, plan, *one, len(sessions), began, session.take_settled(), session.span)
                for session, plan, one in together
            ]
        alone = [await self._passes([one], [plan], began) for one, plan in zip(sessions, plans, strict=True)]
        return [made for one in alone for made in one]

    def _give_up(self, session: ActiveSession, plan: BlockPlan, error: Exception) -> None:
        session.logic.give_up_block(plan)
        session.span.end(str(error))
        if isinstance(error, EngineError):
            self._end(session, refusal(error))
            return
        extra = {"session": session.id, "block": plan.block}
        logger.error("a block could not be made", extra=extra, exc_info=error)
        self._end(session, SessionFailed.of(f"making block {plan.block}", error))

    def _generate(self, sessions: Sequence[ActiveSession], plans: Sequence[BlockPlan]) -> list[_Pass]:
        """In the executor: prompts, passes, and what is new for the standbys."""
        for session, plan in zip(sessions, plans, strict=True):
            if plan.step is None:
                continue
            prompt = session.track.take(plan.step)
            if session.stream.prompt is None or session.stream.prompt.text != prompt.text:
                self._generator.set_prompt(session.stream, prompt)
        submitted = time.monotonic()
        lap = Lap(self._generator.cache.device)
        blocks = self._generator.generate([session.stream for session in sessions])
        lap.stop()
        changes = [session.changes(block) for session, block in zip(sessions, blocks, strict=True)]
        return [_Pass(block, change, lap, submitted) for block, change in zip(blocks, changes, strict=True)]

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
            if not session.is_idle or not session.stream.context_due or not self._has_lease(session):
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
        lap = Lap(self._generator.cache.device)
        self._generator.write_context([session.stream])
        lap.stop()
        return lap
