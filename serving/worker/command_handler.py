"""Commands of sessions on their replica: applied, told to the standby, answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import nullcontext
from functools import partial

from engines.video.stream_engine import StreamEngine
from serving.background_tasks import wait_without_cancelling
from serving.errors import ServingError
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.prompts import PromptTrack
from serving.pipeline.stages import DecoderStage, in_thread
from serving.pipeline.video_decoder import DecoderStart
from serving.protocol.commands import first_answer, handle
from serving.protocol.convert import read_cue, write_receipt
from serving.session.recording_mark import RecordingMark
from serving.session.state_machine import Receipt
from serving.timeline.cue import clean_ahead, is_plain
from serving.worker.pictures.session_input import new_input, require_pictures, require_restylable
from serving.worker.session_copies import SessionCopies
from serving.worker.state.active_session import ActiveSession, at_rest
from serving.worker.state.session_guard import SessionGuard
from serving.worker.suspension import Suspension

REPLICATED_WITHIN_S = 0.5
"""How long a receipt waits for the standby to have its command."""


class CommandHandler:
    """Applies the commands of a replica's sessions, one at a time of each."""

    def __init__(
        self,
        copies: SessionCopies,
        engine: StreamEngine,
        decoder: DecoderStage,
        executor: Executor,
        wake: Callable[[], None],
        suspension: Suspension,
        guard: SessionGuard,
    ) -> None:
        self._suspension = suspension
        self._guard = guard
        self._copies = copies
        self._engine = engine
        self._decoder = decoder
        self._executor = executor
        self._wake = wake
        self._handling: set[asyncio.Task[pb.Receipt]] = set()

    async def stop(self) -> None:
        """Give up what is being done."""
        for task in self._handling:
            task.cancel()
        await asyncio.gather(*self._handling, return_exceptions=True)

    async def handle(self, attempt: str, command: pb.Command, *, steers: bool = False) -> pb.Receipt:
        """Apply a command, answer it, and tell all subscribers. Raises a SessionError if it is refused.

        The answer waits until the standby has the command, so that it outlives this replica. With `steers` it
        comes on a controller's stream, and is refused if another controller has taken over. Where who asks is
        cancelled it is carried out all the same: half of a reset would be no session.
        """
        session = self._copies.leased(attempt)
        replaced = steers and session.logic.controller != command.client_id
        if command.WhichOneof("action") == "shown":
            if not replaced:
                session.logic.shown(command.shown.frame, _now())
                self._wake()
            return pb.Receipt()
        handling = asyncio.create_task(self._handle(session, command, replaced))
        self._handling.add(handling)
        handling.add_done_callback(self._handling.discard)
        return await wait_without_cancelling(handling)

    async def _handle(self, session: ActiveSession, command: pb.Command, replaced: bool) -> pb.Receipt:
        async with session.commands:
            if (before := first_answer(session.logic, command)) is not None:
                return write_receipt(before.receipts[0], repeated=True)
            await _clean(command)
            state = session.logic.state
            try:
                receipts = await self._apply(session, command, replaced)
            except ServingError:
                # A refusal is an answer too, which the standby must give to whoever asks again.
                session.replicate()
                raise
            if command.HasField("schedule_prompt") and not command.schedule_prompt.HasField("frame"):
                session.asked_now[receipts[0].cue_frame] = _now()
            changed = session.logic.state is not state
            if changed and session.input is not None:
                session.input.clear()
            self._wake()
            replicated = await session.answer(receipts, REPLICATED_WITHIN_S)
            if changed:
                session.delivered_at = None
                session.watch.interrupted()
                session.audience.publish_state()
        return write_receipt(receipts[0], replicated=replicated)

    async def mark_recording(self, session: ActiveSession, mark: RecordingMark) -> str:
        """Change what the session knows of its recordings, tell all, and wait for the standby; gives the name."""
        session.recording = mark
        session.audience.publish_state()
        if session.feed is not None:
            await session.feed.replicated(REPLICATED_WITHIN_S)
        return mark.name

    async def _apply(self, session: ActiveSession, command: pb.Command, replaced: bool) -> tuple[Receipt, ...]:
        action, suspended = command.WhichOneof("action"), session.logic.suspended
        if action == "reset" and not replaced:
            with self._suspension.slot(session) if suspended else nullcontext():
                return await self._reset(session, command)
        if action == "resume" and suspended and not replaced:
            async with self._suspension.resumed(session):
                return handle(self._copies.leased(session.attempt).logic, command, _now()).receipts
        if command.HasField("schedule_prompt") and command.schedule_prompt.HasField("restyling"):
            require_restylable(session.spec, [read_cue(command.schedule_prompt)])
        if action in ("cut", "restyle"):
            require_pictures(session.input)
        # The lease may have run out while an earlier command was answered.
        logic = self._copies.leased(session.attempt).logic
        return handle(logic, command, _now(), steers=not replaced).receipts

    async def _reset(self, session: ActiveSession, command: pb.Command) -> tuple[Receipt, ...]:
        """A new stream in place of the one that is reset. Where no decoder can be had nothing has changed."""
        async with at_rest(session, self._wake):
            before, after = session.decoder_key, session.decoder_key_of(session.logic.take + 1)
            await self._decoder.open(after, DecoderStart(0, 0, []))
            try:
                receipts = handle(self._copies.leased(session.attempt).logic, command, _now()).receipts
            except BaseException:
                await self._decoder.close(after)
                raise
            try:
                with self._guard.answering(session, "beginning a new take"):
                    await self._renew_stream(session)
            finally:
                await self._decoder.close(before)
        return receipts

    async def _renew_stream(self, session: ActiveSession) -> None:
        await in_thread(self._executor, partial(self._restart, session))
        session.audience.kept.clear()
        session.prompts, session.texts_in_force = {}, ()
        session.asked_now.clear()
        session.settled = None
        session.track = PromptTrack(session.prompts)
        session.input = new_input(session.spec)
        if session.feed is not None:
            session.feed.restart(self._engine.replica_log(session.stream))
        session.audience.publish_state()

    def _restart(self, session: ActiveSession) -> None:
        """In the executor: the room changes hands from the old stream to the new one."""
        self._engine.close(session.stream)
        if not session.closed:
            session.stream = self._engine.open(session.config)


async def _clean(command: pb.Command) -> None:
    """Have a cue's texts cleaned where that takes nobody else's time."""
    texts = [part.text for part in command.schedule_prompt.prompts]
    if not all(map(is_plain, texts)):
        await asyncio.to_thread(clean_ahead, texts)


def _now() -> float:
    return asyncio.get_running_loop().time()
