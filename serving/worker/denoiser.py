"""The denoiser: a replica's sessions and the one generator that makes their blocks; the authority on both."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial

from engines.streaming.generator import Generator
from engines.streaming.replica_log import ReplicaLog
from engines.streaming.snapshot import take_light
from serving.errors import ReplicaLost, ServingError, SessionNotFound, SlotsFull, WrongState
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.prompts import PromptTrack
from serving.pipeline.stages import DecoderStage, TextEncoderStage, in_thread
from serving.protocol.convert import write_receipt
from serving.replication.messages import Item, ReplicationDelta, ResumeState, Role, SavedSession, SessionSpec
from serving.session.state_machine import Receipt
from serving.timeline.cue import Cue
from serving.worker.active_session import ActiveSession
from serving.worker.block_loop import BlockLoop
from serving.worker.command_handler import first_answer, handle
from serving.worker.delivery import decoder_start
from serving.worker.metrics import Metrics
from serving.worker.session_factory import SessionFactory
from serving.worker.subscriber import Subscriber

logger = logging.getLogger(__name__)

BEAT_S = 0.5
"""How often a stream without news says that its replica lives."""

REAP_EVERY_S = 1.0


class Denoiser:
    """Holds up to `slots` sessions; everything but the making of blocks happens on the event loop.

    Args:
        generator: without a codec; it keeps as many latents as the decoders need.
        text: encodes prompts.
        pictures: decodes and encodes.
        executor: the one thread that uses the generator, in which it was warmed up; it ends with the denoiser.
        slots: sessions at a time.
        replica: the name of this replica, which goes with every session.
        metrics: where to count.

    """

    def __init__(
        self,
        generator: Generator,
        text: TextEncoderStage,
        pictures: DecoderStage,
        executor: ThreadPoolExecutor,
        *,
        slots: int,
        replica: str,
        metrics: Metrics,
    ) -> None:
        self._generator = generator
        self._decoder = pictures
        self._slots = slots
        self._metrics = metrics
        self._sessions: dict[str, ActiveSession] = {}
        self._opening = 0
        self._executor = executor
        self._endings: set[asyncio.Task[None]] = set()
        self._production = BlockLoop(
            generator, text, pictures, self._executor, self._sessions.values, self._end, metrics
        )
        self._factory = SessionFactory(generator, text, pictures, self._executor, replica)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to make blocks; to be called on the event loop."""
        self._metrics.slots(0, self.free)
        self._tasks = [asyncio.create_task(self._production.run()), asyncio.create_task(self._reap())]

    async def stop(self) -> None:
        """End all sessions and stop."""
        for task in self._tasks:
            task.cancel()
        for session in list(self._sessions.values()):
            self._end(session, None)
        await asyncio.gather(*self._tasks, *self._endings, return_exceptions=True)
        self._executor.shutdown()

    def check(self) -> None:
        """Raise RuntimeError if nothing makes blocks any more."""
        for task in self._tasks:
            if task.done():
                raise RuntimeError(f"the denoiser has stopped: {task.exception()!r}")

    @property
    def free(self) -> int:
        """Sessions that can still be opened."""
        return self._slots - len(self._sessions) - self._opening

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the sessions that are here."""
        return tuple(self._sessions)

    # Opening and closing

    async def open(
        self, spec: SessionSpec, cues: Sequence[Cue] = (), resume: ResumeState | None = None
    ) -> pb.Session:
        """Open a session, new or from where it was elsewhere. Raises SlotsFull at once if there is no slot.

        Opening one that is here already, at the same or a later epoch, changes nothing.
        """
        here = self._sessions.get(spec.session_id)
        if here is not None and (resume is None or here.epoch >= resume.epoch):
            return here.describe()
        with self._slot():
            session = await self._factory.open(spec, cues, resume)
            return self._admit(session, resumed=resume is not None)

    async def close(self, session_id: str) -> None:
        """End a session. Raises SessionNotFound."""
        session = self._session(session_id)
        self._end(session, None)
        await asyncio.gather(*self._endings)

    async def give_up(self, session_id: str, epoch: int) -> None:
        """End a session that is here from before `epoch`, at which it has been opened elsewhere."""
        session = self._sessions.get(session_id)
        if session is not None and session.epoch < epoch:
            self._end(session, ReplicaLost("the session has gone on elsewhere"))

    def holds(self, session_id: str) -> int:
        """The epoch of a session that is here, -1 for one that is not."""
        session = self._sessions.get(session_id)
        return -1 if session is None else session.epoch

    def describe(self, session_id: str) -> pb.Session:
        """How a session stands. Raises SessionNotFound."""
        return self._session(session_id).describe()

    def sessions_of(self, caller: str) -> list[pb.Session]:
        """The caller's sessions, without their cues."""
        mine = [session for session in self._sessions.values() if session.spec.caller == caller]
        return [session.describe(cues=False) for session in mine]

    def caller_of(self, session_id: str) -> str:
        """Whose session it is. Raises SessionNotFound."""
        return self._session(session_id).spec.caller

    def _admit(self, session: ActiveSession, *, resumed: bool = False) -> pb.Session:
        if (before := self._sessions.get(session.id)) is not None:
            self._end(before, ReplicaLost("the session has gone on since it was here"))
        self._sessions[session.id] = session
        if resumed:
            self._metrics.resumed("session")
        logger.info("session opened", extra={"session": session.id, "epoch": session.epoch})
        self._production.wake()
        return session.describe()

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """A slot, taken while a session is being opened for it. Raises SlotsFull."""
        if self.free <= 0:
            self._metrics.refused("slots")
            raise SlotsFull(f"all {self._slots} sessions of this replica are taken; end one, or try again later")
        self._opening += 1
        try:
            yield
        finally:
            self._opening -= 1
            self._metrics.slots(len(self._sessions), self.free)

    def _end(self, session: ActiveSession, failure: ServingError | None) -> None:
        """Take a session away at once; its memory follows when nothing works on it any more."""
        if session.closed:
            return
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]
        session.logic.end()
        session.publish_state()
        session.finish(failure)
        self._metrics.slots(len(self._sessions), self.free)
        logger.info("session ended", extra={"session": session.id, "why": str(failure or "closed")})
        ending = asyncio.create_task(self._free(session))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def _free(self, session: ActiveSession) -> None:
        if session.encoding is not None:
            session.encoding.cancel()
        # A reset on its way may still change the stream: its last one is closed.
        await in_thread(self._executor, lambda: self._generator.close(session.stream))
        await self._decoder.close(session.decoder_key)

    async def _reap(self) -> None:
        """End the sessions whose lease is over."""
        while True:
            await asyncio.sleep(REAP_EVERY_S)
            now = asyncio.get_running_loop().time()
            for session in list(self._sessions.values()):
                if session.logic.lease_ends() <= now:
                    lease = session.spec.pace.lease_s
                    self._end(session, SessionNotFound(f"the session ended: nobody came for {lease:g} s"))

    # Commands

    async def command(self, session_id: str, command: pb.Command, *, steers: bool = True) -> pb.Receipt:
        """Obey a command, answer it, and tell all subscribers. Raises a SessionError if it is refused.

        `steers` is false for what comes on the stream of a controller that has been replaced.
        """
        session, loop = self._session(session_id), asyncio.get_running_loop()
        if command.WhichOneof("action") == "shown":
            if not steers:
                return pb.Receipt()
            session.logic.shown(command.shown.frame, loop.time())
            self._production.wake()
            return pb.Receipt()
        async with session.commands:
            now = loop.time()
            if (before := first_answer(session.logic, command)) is not None:
                return write_receipt(before.receipts[0], repeated=True)
            state = session.logic.state
            if command.WhichOneof("action") == "reset" and steers:
                receipts = await self._reset(session, command)
            else:
                receipts = handle(session.logic, command, now, steers=steers).receipts
            if command.HasField("schedule_prompt") and not command.schedule_prompt.HasField("frame"):
                session.asked_now[receipts[0].cue_frame] = now
            session.publish_receipts(receipts)
            if session.logic.state is not state:
                session.delivered_at = None
                session.publish_state()
            session.remember()
        self._production.wake()
        return write_receipt(receipts[0])

    async def _reset(self, session: ActiveSession, command: pb.Command) -> tuple[Receipt, ...]:
        """A new stream in place of the one that is reset; the state is sent before the receipts."""
        async with self._resting(session):
            before = session.decoder_key
            receipts = handle(session.logic, command, asyncio.get_running_loop().time()).receipts
            await self._decoder.close(before)
            await in_thread(self._executor, partial(self._restart, session))
            self._session(session.id)
            session.kept.clear()
            session.prompts = {}
            session.track = PromptTrack(session.prompts)
            await self._decoder.open(session.decoder_key, decoder_start(session, 0))
            session.publish_state()
        return receipts

    def _restart(self, session: ActiveSession) -> None:
        """In the executor: the room changes hands from the old stream to the new one."""
        self._generator.close(session.stream)
        if session.closed:
            return
        session.stream = self._generator.open(session.config)
        if session.source is not None:
            session.source = ReplicaLog(self._generator, session.stream)

    # Following

    async def subscribe(
        self,
        session_id: str,
        role: Role,
        from_frame: int | None,
        *,
        may_keep: bool,
        client_id: str = "",
        reattach: bool = False,
    ) -> AsyncGenerator[Item]:
        """A session's events, beginning with its state.

        A subscriber that may be the standby becomes it if nobody is. Raises SessionNotFound, and FrameOutOfRange
        for a frame that is not kept any more.
        """
        session, loop = self._session(session_id), asyncio.get_running_loop()
        subscriber = session.subscribe(role, from_frame, loop.time(), client_id, reattach=reattach)
        standbys = [subscriber] if may_keep else []
        try:
            if standbys and session.standby is None:
                self._appoint(session, subscriber)
            self._production.wake()
            async for item in subscriber.items(BEAT_S):
                if standbys and session.standby is None and not session.closed:
                    self._appoint(session, subscriber)
                yield item
        finally:
            session.unsubscribe(subscriber, loop.time())
            self._production.wake()

    def _appoint(self, session: ActiveSession, subscriber: Subscriber) -> None:
        """Make a subscriber the standby, and tell it all there is so far."""
        session.standby = subscriber
        session.source = ReplicaLog(self._generator, session.stream)
        chunks = tuple(session.kept)
        record = session.logic.record(asyncio.get_running_loop().time())
        subscriber.put_delta(
            ReplicationDelta(record, None, chunks, session.spec, session.epoch, session.recording)
        )

    def set_recording(self, session_id: str, name: str) -> None:
        """Note that a recording is being written, or (empty) is not. Raises WrongState if one already is."""
        session = self._session(session_id)
        if name and session.recording:
            raise WrongState(f"the session is being recorded as {session.recording}; stop that first")
        session.recording = name
        session.publish_state()
        session.remember()

    # Copies

    async def save(self, session_id: str) -> SavedSession:
        """The session at its present block."""
        session = self._session(session_id)
        async with session.commands, self._resting(session):
            stream = None
            if session.stream.blocks:
                stream = await in_thread(self._executor, partial(take_light, self._generator, session.stream))
            return SavedSession(session.describe(), stream)

    async def fork(self, session_id: str, caller: str, frame: int | None) -> pb.Session:
        """A second session with the same past, up to the present block or the one that contains `frame`."""
        session = self._session(session_id)
        spec = replace(session.spec, session_id=str(uuid.uuid4()), caller=caller, created=time.time())
        with self._slot():
            if frame is not None:
                return self._admit(await self._factory.fork_back(session, spec, frame))
            async with session.commands, self._resting(session):
                return self._admit(await self._factory.fork_here(session, spec))

    @asynccontextmanager
    async def _resting(self, session: ActiveSession) -> AsyncIterator[None]:
        """Nothing of the session is on its way: its logic and its stream stand at the same block."""
        session.held += 1
        try:
            while session.making or session.undelivered:
                await asyncio.sleep(0.005)
            yield
        finally:
            session.held -= 1
            self._production.wake()

    def _session(self, session_id: str) -> ActiveSession:
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionNotFound(f"no session {session_id!r} is here; it may have ended")
        return session
