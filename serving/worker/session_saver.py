"""What a session leaves with: to be restored by a client, or to go on on another replica."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from engines.streaming.snapshot import machine_of
from engines.video.input import InputState
from engines.video.stream_engine import StreamEngine
from serving.errors import ReplicaLost
from serving.pipeline.engine_errors import refused
from serving.pipeline.stages import in_thread
from serving.protocol.convert import write_cue
from serving.protocol.cue_pages import whole_log
from serving.protocol.evacuated import write_evacuated
from serving.replication.messages import Departure, HandedOver, ResumeState, SavedSession
from serving.worker.session_copies import SessionCopies
from serving.worker.state.active_session import ActiveSession, at_rest

LEAVES = "another denoiser: its replica is being taken away"

MOST_EXACT_BYTES = 256 << 20
"""Of the window of a session that moves as it is: a second of a network; what is larger is rebuilt in less."""


class SessionSaver:
    """Takes the state of sessions between two blocks. `executor` has the one thread that uses the generator.

    A session that moves waits up to `standby_s` for its standby.
    """

    def __init__(
        self, copies: SessionCopies, engine: StreamEngine, executor: Executor, wake: Callable[[], None],
        standby_s: float,
    ) -> None:  # fmt: skip
        self._copies = copies
        self._engine = engine
        self._executor = executor
        self._wake = wake
        self._standby_s = standby_s

    async def save(self, attempt: str, max_bytes: int) -> SavedSession:
        """The session at its present block, with all its log. Raises LimitReached if that is too long."""
        session = self._copies.leased(attempt)
        async with session.commands, at_rest(session, self._wake):
            return await self._saved(session, max_bytes)

    async def hand_over(self, attempt: str, epoch: int, move: int, machine: dict[str, Any]) -> HandedOver:
        """All of a session, which makes and sends nothing here from then on unless its move is given up.

        Its stream is exact where a like `machine` takes it and it is not too large to be sent. Raises NoLease
        where the copy is not the one of `epoch` or the move was given up, and ReplicaLost while its standby lacks
        anything.
        """
        session = self._copies.leased(attempt)
        async with session.commands, at_rest(session, self._wake):
            await self._require_replicated(session)
            input_state = None if session.input is None else session.input.state
            exact = self._goes_exactly(session, input_state, machine)
            stream = await self._stream(session, input_state, exact=exact)
            self._copies.yield_lease(attempt, epoch, move)
            resume = ResumeState(
                session.standing().record, stream, tuple(session.audience.kept), session.recording,
                LEAVES, session.logic.applied.past(), exact=exact,
                pictures=() if session.input is None else tuple(session.input.kept),
                lost_pictures=0 if session.input is None else session.input.waiting,
            )  # fmt: skip
            return HandedOver(session.spec, resume)

    async def depart(self, attempt: str, epoch: int, move: int, max_bytes: int) -> Departure:
        """The same for another server, with a light snapshot. Raises LimitReached as `save`."""
        session = self._copies.leased(attempt)
        async with session.commands, at_rest(session, self._wake):
            await self._require_replicated(session)
            saved = await self._saved(session, max_bytes)
            record = session.standing().record
            saved.session.shown_frame = record.shown
            self._copies.yield_lease(attempt, epoch, move)
            return Departure(saved, write_evacuated(session.spec.caller, record, session.audience.kept))

    async def _saved(self, session: ActiveSession, max_bytes: int) -> SavedSession:
        state = session.describe(cues=False)
        state.provenance.CopyFrom(session.provenance)
        state.pending.extend(write_cue(pending.cue) for pending in session.logic.pending)
        # A client's snapshot may have had a log of any length.
        state.applied.extend(await asyncio.to_thread(whole_log, session.logic.applied, max_bytes))
        return SavedSession(state, await self._stream(session, exact=False))

    async def _require_replicated(self, session: ActiveSession) -> None:
        """Raise ReplicaLost while the standby lacks anything."""
        if session.feed is None or not await session.feed.replicated(self._standby_s):
            raise ReplicaLost("the session's standby has not got all of it yet")

    def _goes_exactly(
        self, session: ActiveSession, input_state: InputState | None, machine: dict[str, Any]
    ) -> bool:
        nbytes = self._engine.exact_bytes(session.stream, input_state)
        return nbytes is not None and nbytes <= MOST_EXACT_BYTES and machine == machine_of(self._engine.text)

    async def _stream(
        self, session: ActiveSession, input_state: InputState | None = None, *, exact: bool
    ) -> bytes | None:
        """A snapshot of its stream; None before the first block."""
        if not session.stream.blocks:
            return None
        engine, stream = self._engine, session.stream
        exactly, lightly = partial(engine.take_exact, stream, input_state), partial(engine.take_light, stream)
        with refused():
            return await in_thread(self._executor, exactly if exact else lightly)
