"""The making of blocks on one device: whose is next, its prompt, its passes.

One thread makes blocks, and a session's block is decoded and sent while its next one is made. At most two blocks
of a session are on their way at a time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import torch

from engines.config.video_stream import AnyStreamConfig
from serving.media.clips.shown_frame import PictureSize
from serving.session.state_machine import BlockPlan, State
from serving.tracing.tracer import Tracer
from serving.worker.blocks.delivery import Delivery, MadeBlock
from serving.worker.blocks.passes import Begun, Out, Passes
from serving.worker.blocks.prompt_prefetch import PromptPrefetch
from serving.worker.blocks.scheduler import Candidate, Scheduler, Urgency
from serving.worker.blocks.video_loops import VideoLoops
from serving.worker.capacity.capacity import Capacity
from serving.worker.state.active_session import ActiveSession, BegunBlock
from serving.worker.state.session_guard import SessionGuard

MOST_UNDELIVERED = 2
LONGEST_WAIT_S = 0.5

SPARE_EVERY_S = 0.02
"""How often it is looked whether there is time for what is made beside the sessions."""


class BlockLoop:
    """Makes the blocks of those of `sessions` that have a lease, for as long as `run` runs.

    `guard` ends a session whose block cannot be made, and `encode_more` is told of one whose pictures can be
    encoded for another block.
    """

    def __init__(
        self,
        passes: Passes,
        sessions: Callable[[], Sequence[ActiveSession]],
        has_lease: Callable[[ActiveSession], bool],
        guard: SessionGuard,
        encode_more: Callable[[ActiveSession], None],
        capacity: Capacity,
        loops: VideoLoops,
        tracer: Tracer,
    ) -> None:
        self._passes = passes
        self._sessions = sessions
        self._has_lease = has_lease
        self._guard = guard
        self._encode_more = encode_more
        self._capacity = capacity
        self._loops = loops
        self._tracer = tracer
        self._scheduler = Scheduler(passes.batch)
        self._wake = asyncio.Event()
        self._free_at = 0.0

    def wake(self) -> None:
        """Something has changed: a command, a report, a viewer, a lease."""
        self._wake.set()

    async def run(self, prompts: PromptPrefetch, delivery: Delivery) -> None:
        """Make blocks until cancelled. Raises RuntimeError once the device has failed in anything."""
        loop = asyncio.get_running_loop()

        def prepare(session: ActiveSession) -> None:
            prompts.begin(session)
            self._encode_more(session)

        while True:
            now = loop.time()
            self._guard.check()
            self._guard.each(self._sessions(), "preparing its next block", prepare)
            leased = [session for session in self._sessions() if self._has_lease(session)]
            self._loops.look(leased, now)
            self._guard.each(leased, "telling it its loop", self._loops.tell)
            candidates = self._candidates(now)
            flushed = self._first(leased, "looking for what is to come out", lambda one: one.is_to_be_flushed)
            if flushed is not None:
                await self._flush(flushed, delivery)
            elif picked := self._scheduler.pick(candidates, now, self._free_at):
                by_attempt = {session.attempt: session for session in self._sessions()}
                await self._make([by_attempt[candidate.key] for candidate in picked], delivery)
                self._give(sum(candidate.cost for candidate in picked), now)
            elif idle := self._unsettled(candidates, now):
                await self._settle(idle)
            else:
                await self._sleep(candidates, now)

    async def spare_time(self, stream: AnyStreamConfig) -> None:
        """Wait until a block like those of `stream` can be made, and makes no paced session late."""
        while True:
            now = asyncio.get_running_loop().time()
            seconds, at = self._capacity.block_s(stream, now), max(now, self._free_at)
            is_free = not self._passes.are_running
            if is_free and self._scheduler.leaves_time(seconds, self._candidates(now), at):
                break
            await asyncio.sleep(SPARE_EVERY_S)
        self._give(seconds, now)

    # Whose block is next

    def _candidates(self, now: float) -> list[Candidate]:
        def delivers_s(session: ActiveSession) -> float:
            return session.undelivered * self._capacity.delivering.expect(session.cost_config, now)

        backlog = sum(self._guard.each(self._sessions(), "estimating its delivery", delivers_s))
        running = [
            session
            for session in self._sessions()
            if session.logic.state is State.RUNNING and not session.held and self._has_lease(session)
        ]
        return self._guard.each(running, "planning its next block", lambda one: self._candidate(one, backlog, now))

    def _candidate(self, session: ActiveSession, backlog_s: float, now: float) -> Candidate:
        """A session that runs. Where no block of it can be made now, that is due once something has happened.

        What is made now is decoded once the `backlog_s` is.
        """
        logic, stream = session.logic, session.config
        ready = session.is_idle and session.undelivered < MOST_UNDELIVERED and session.has_prompts()
        ready = ready and not session.is_to_be_flushed
        due = session.due(now) if ready else None
        if due is not None and due <= now:
            session.ready_since = min(session.ready_since, now)
        expected = session.expected()
        if expected is not None:
            delivery_s = backlog_s + self._capacity.delivering.expect(session.cost_config, now)
            urgency, deadline = Urgency.CLOCKED, expected - delivery_s
        else:
            urgency = Urgency.WAITING if logic.pace.fps else Urgency.UNPACED
            deadline = logic.patience()
        shape = (type(stream), stream.height, stream.width, stream.steps)
        cost = self._cost(session, now)
        return Candidate(session.attempt, shape, deadline, math.inf if due is None else due, urgency, cost)

    def _cost(self, session: ActiveSession, now: float) -> float:
        """Of its next block."""
        if (opened := session.opens_next) is not None:
            return self._capacity.opening_s(opened, now)
        return self._capacity.block_s(session.cost_config, now)

    def _give(self, seconds: float, now: float) -> None:
        """Note until when the device works; on a CPU what it was given is done."""
        if self._passes.are_queued:
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
        """Begin one block for each of `sessions`, and send on its way what comes out."""
        now = asyncio.get_running_loop().time()
        try:
            begun = self._guard.each(sessions, "beginning a block", lambda session: self._begin(session, now))
            made = await self._made(begun) if begun else []
        finally:
            for session in sessions:
                session.making = None
        for session, out in made:
            with self._guard.working(session, "sending a block on its way"):
                self._deliver(session, out, delivery)

    def _begin(self, session: ActiveSession, now: float) -> Begun:
        """A session's next block. Raises LimitReached where its log cannot be written."""
        plan = session.logic.begin_block(now)
        session.making = plan.block
        self._trace(session, plan, now)
        begun, made_from, resized = BegunBlock(plan, session.span, now), None, None
        if session.input is not None:
            opened_with = session.input.source.size
            made_from = session.input.take(now, None if plan.step is None else plan.step.restyling)
            later = session.config.passes - 1 if session.loop == "batch" else 0
            due = made_from.due + later * session.input.period_s
            begun = begun._replace(pictures=made_from.pictures.ids, due=due, loop=session.loop)
            resized = None if opened_with in (None, made_from.source.size) else made_from.source.size
            self._encode_more(session)
        session.on_way.append(begun)
        self._announce(session, plan, resized)
        if plan.step is not None and plan.step.restyling is not None:
            session.audience.publish_state()
        return Begun(session, begun, made_from)

    def _deliver(self, session: ActiveSession, out: Out, delivery: Delivery) -> None:
        for number, block in enumerate(out.blocks, start=1):
            made_by, is_last = out.made_by, number == len(out.blocks)
            if not is_last:
                made_by = made_by._replace(changes=None)
            begun = session.on_way.popleft()
            delivery.begin(MadeBlock(session, begun, block, made_by, session.take_settled(), is_last))
        if not out.blocks:
            delivery.begin_changes(session, out.made_by)

    async def _made(self, begun: Sequence[Begun]) -> list[tuple[ActiveSession, Out]]:
        """What has come out. Where a batch fails each is made alone, and only who fails again ends."""
        try:
            out = await self._passes.generate(begun)
        except torch.AcceleratorError:
            # The device is in an unknown state, and so is whatever is on it.
            raise
        except Exception as error:
            if len(begun) == 1:
                self._give_up(begun[0], error)
                return []
        else:
            return [(one.session, what) for one, what in zip(begun, out, strict=True)]
        alone = [await self._made([one]) for one in begun]
        return [made for one in alone for made in one]

    def _give_up(self, begun: Begun, error: Exception) -> None:
        session, (plan, *_), _ = begun
        with self._guard.working(session, f"making block {plan.block}"):
            session.logic.give_up_block(plan)
            session.on_way.pop()
            for block in (*session.on_way, begun.block):
                block.span.end(str(error))
            raise error

    async def _flush(self, session: ActiveSession, delivery: Delivery) -> None:
        """Have what is on its way come out, at the session's cost."""
        now = asyncio.get_running_loop().time()
        async with self._beside(session, "a flush"):
            seconds = len(session.on_way) * self._capacity.block_s(session.cost_config, now)
            self._scheduler.charge(session.attempt, seconds)
            self._give(seconds, now)
            self._deliver(session, await self._passes.flush(session), delivery)

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

    def _announce(self, session: ActiveSession, plan: BlockPlan, resized: PictureSize | None) -> None:
        if plan.step is not None:
            session.texts_in_force = tuple(text for text, _ in plan.step.target.parts)
            session.forget_prompts()
        session.replicate()
        session.publish_applied(plan, resized)

    def _unsettled(self, candidates: Sequence[Candidate], now: float) -> ActiveSession | None:
        """A session whose clean pass can be run now; one that is to be recached will not need it."""
        at = max(now, self._free_at)

        def can_settle(session: ActiveSession) -> bool:
            if not session.is_idle or not session.context_due or not self._has_lease(session):
                return False
            one_pass = self._capacity.denoising.expect(session.cost_config, now) / session.config.passes
            return not session.upcoming_texts(1) and self._scheduler.leaves_time(one_pass, candidates, at)

        return self._first(self._sessions(), "looking for a clean pass", can_settle)

    async def _settle(self, session: ActiveSession) -> None:
        async with self._beside(session, "a clean pass"):
            session.settled = await self._passes.write_context(session)

    @asynccontextmanager
    async def _beside(self, session: ActiveSession, doing: str) -> AsyncIterator[None]:
        """The device works for a session beside its blocks; where that fails the session ends."""
        session.settling = True
        try:
            with self._guard.working(session, doing):
                yield
        finally:
            session.settling = False

    def _first(
        self, sessions: Sequence[ActiveSession], doing: str, holds: Callable[[ActiveSession], bool]
    ) -> ActiveSession | None:
        """The first for which something holds."""
        found = self._guard.each(sessions, doing, lambda session: session if holds(session) else None)
        return next(filter(None, found), None)
