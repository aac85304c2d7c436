"""Sessions that are paused for long give their slots back, and take others when they are resumed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from engines.video.stream_engine import AnyStream, StreamEngine
from serving.background_tasks import BackgroundTasks
from serving.errors import SlotsFull
from serving.pipeline.engine_errors import refused
from serving.pipeline.stages import DecoderStage, in_thread
from serving.session.types import State
from serving.worker.blocks.delivery import decoder_start
from serving.worker.session_copies import SessionCopies
from serving.worker.state.active_session import ActiveSession, at_rest
from serving.worker.state.session_guard import SessionGuard

logger = logging.getLogger(__name__)

MOST_PER_SLOT = 4
"""Suspended sessions: each keeps the latents of its window on the device, ten megabytes at 480x832."""

WANTED_S = 10.0
"""How long after it was refused a slot a session is moved to where one is free."""


class Suspension:
    """Takes the slots of sessions that have been paused for `after_s`, which is 0 where none is to be suspended.

    A suspended session is there, with its lease, its standby and its viewers, but it has neither a window on the
    device nor a decoder, nor what its pictures were encoded behind. `executor` has the one thread that uses the
    engine.
    """

    def __init__(
        self, copies: SessionCopies, engine: StreamEngine, decoder: DecoderStage, executor: Executor,
        wake: Callable[[], None], guard: SessionGuard, slots: int, after_s: float,
    ) -> None:  # fmt: skip
        self._copies = copies
        self._engine = engine
        self._decoder = decoder
        self._executor = executor
        self._wake = wake
        self._guard = guard
        self._most = MOST_PER_SLOT * slots
        self._after_s = after_s
        self._background = BackgroundTasks()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def look(self, session: ActiveSession, now: float) -> None:
        """Suspend a session whose time has come; to be called again and again."""
        if session.logic.state is not State.PAUSED:
            session.paused_since = None
        elif session.paused_since is None:
            session.paused_since = now
        elif self._after_s and now - session.paused_since >= self._after_s:
            self._begin(session)

    def _may_suspend(self, session: ActiveSession) -> bool:
        logic, there = session.logic, sum(copy.logic.suspended for copy in self._copies.all)
        is_paused = logic.state is State.PAUSED and not session.ending and self._copies.has_lease(session)
        return is_paused and not logic.suspended and there < self._most

    def _begin(self, session: ActiveSession) -> None:
        if session.attempt in self._tasks or not self._may_suspend(session):
            return
        task = self._background.start("suspending a session", self._suspend(session), session=session.id)
        self._tasks[session.attempt] = task
        task.add_done_callback(lambda _: self._tasks.pop(session.attempt, None))

    async def _suspend(self, session: ActiveSession) -> None:
        with self._guard.working(session, "suspending it"):
            await self._suspend_at_rest(session)

    async def _suspend_at_rest(self, session: ActiveSession) -> None:
        async with session.commands, at_rest(session, self._wake):
            if not self._may_suspend(session):
                return
            await self._put_aside(session)
            if session.input is not None:
                session.input.suspend()
            session.logic.suspend()
            self._copies.count()
            session.replicate()
            session.audience.publish_state()
            logger.info("session suspended", extra={"session": session.id, "attempt": session.attempt})

    @contextmanager
    def slot(self, session: ActiveSession) -> Iterator[None]:
        """A slot for a suspended session, while it is being resumed.

        Raises SlotsFull where none is free here: if one is elsewhere, the session is moved there meanwhile.
        """
        try:
            with self._copies.slot(session.spec):
                yield
        except SlotsFull:
            session.wants_room = asyncio.get_running_loop().time() + WANTED_S
            raise

    @asynccontextmanager
    async def resumed(self, session: ActiveSession) -> AsyncIterator[None]:
        """The same, in which its window and its decoder are there again; where the block fails they go again."""
        with self.slot(session):
            async with at_rest(session, self._wake):
                await self._open(session)
                try:
                    yield
                except BaseException:
                    await self._put_aside(session)
                    raise

    async def _open(self, session: ActiveSession) -> None:
        stream = session.stream
        try:
            with refused():
                await in_thread(self._executor, partial(self._engine.resume, stream))
            await self._decoder.open(session.decoder_key, decoder_start(session, stream.blocks))
        except BaseException:
            await self._put_aside(session)
            raise

    async def _put_aside(self, session: ActiveSession) -> None:
        await in_thread(self._executor, partial(self._take_window, session.stream))
        await self._decoder.close(session.decoder_key)

    def _take_window(self, stream: AnyStream) -> None:
        """In the executor: of a stream that has one, and has not been closed meanwhile."""
        if not (stream.closed or stream.is_suspended):
            self._engine.suspend(stream)
