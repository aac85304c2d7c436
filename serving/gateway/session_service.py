"""The sessions behind the public faces: asks the replicas, mirrors what must outlive them, hides their loss."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from engines.config.stream import StreamConfig
from engines.errors import ConfigError
from serving.auth import Caller
from serving.config import ServerConfig
from serving.errors import (
    InvalidRequest,
    LimitReached,
    NotAllowed,
    ReplicaLost,
    ServingError,
    SessionNotFound,
    SlotsFull,
    WrongState,
)
from serving.gateway.api import SessionAPI
from serving.gateway.recorder import Recorder
from serving.gateway.recording_store import Recordings
from serving.gateway.replica_pool import CALL_S, ReplicaPool
from serving.gateway.session_snapshot import pack, restored_record, unpack
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import read_cues, read_pace
from serving.protocol.status import write_error
from serving.protocol.stream_cursor import RelayCursor
from serving.replication.messages import Item, ResumeState, Role, SavedSession, SessionSpec
from serving.replication.standby import StandbyCopy
from serving.timeline.timeline import Settings

logger = logging.getLogger(__name__)

FINISH_S = 5.0
"""How long a recording may take to be finished."""

LOOK_EVERY_S = 0.2
"""How often a session is looked for that another manager should open again."""


@dataclass
class _Control:
    """A controller's stream: whose it is, whether it steered before, and whether it still does."""

    client_id: str
    reattach: bool
    steers: bool = True


class SessionService(SessionAPI):
    """The sessions of the denoisers behind `replicas`."""

    @override
    def __init__(self, replicas: ReplicaPool, config: ServerConfig, stream: StreamConfig) -> None:
        self._replicas = replicas
        self._config = config
        self._stream = stream
        self._standbys: dict[str, StandbyCopy] = {}
        self._recovering: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        folder = Path(config.recordings)
        # A server without tokens has one caller, whose name is empty and whose folder is the whole.
        self._recordings = {caller: Recordings(folder / caller) for caller in config.tokens.digests or ("",)}

    @override
    def authenticate(self, token: str | None) -> Caller:
        caller = self._config.tokens.caller(token)
        if caller is None:
            known = "a token is missing" if token is None else "the token is unknown"
            raise NotAllowed(f"{known}; send `authorization: Bearer TOKEN`")
        return Caller(caller)

    async def ready(self) -> bool:
        """Whether a denoiser is there to open sessions on."""
        return len(await self._replicas.ask_all("room")) > 0

    # Opening and closing

    @override
    async def create(self, request: pb.CreateSessionRequest, caller: Caller) -> pb.Session:
        cues = read_cues(request.cues)
        spec = self._spec(request.options, caller)
        await self._require_room(caller)
        return await self._open(spec, cues)

    @override
    async def get(self, session_id: str, caller: Caller) -> pb.Session:
        await self._require_own(session_id, caller)
        return pb.Session.FromString(await self._ask(session_id, "describe"))

    @override
    async def list(self, caller: Caller) -> list[pb.Session]:
        answers = await self._replicas.ask_all("sessions_of", caller.name)
        sessions = [pb.Session.FromString(data) for answer in answers for data in answer]
        return sorted(sessions, key=lambda session: session.create_time.ToNanoseconds())

    @override
    async def delete(self, session_id: str, caller: Caller) -> None:
        await self._require_own(session_id, caller)
        await self._ask(session_id, "close")
        self._replicas.forget(session_id)

    @override
    async def fork(self, request: pb.ForkSessionRequest, caller: Caller) -> pb.Session:
        await self._require_own(request.session_id, caller)
        await self._require_room(caller)
        frame = request.frame if request.HasField("frame") else None
        data = await self._ask(request.session_id, "fork", caller.name, frame, timeout_s=CALL_S)
        return self._opened(pb.Session.FromString(data))

    @override
    async def snapshot(self, request: pb.SnapshotSessionRequest, caller: Caller) -> pb.SnapshotSessionResponse:
        await self._require_own(request.session_id, caller)
        session, stream = await self._ask(request.session_id, "save", timeout_s=CALL_S)
        saved = SavedSession(pb.Session.FromString(session), stream)
        return pb.SnapshotSessionResponse(
            snapshot=pack(saved), next_frame=saved.session.next_frame, kind=pb.SNAPSHOT_KIND_LIGHT
        )

    @override
    async def restore(self, request: pb.RestoreSessionRequest, caller: Caller) -> pb.Session:
        if len(request.snapshot) > self._config.limits.snapshot_bytes:
            raise LimitReached(
                f"the snapshot has {len(request.snapshot)} bytes; "
                f"at most {self._config.limits.snapshot_bytes} are taken"
            )
        saved = unpack(request.snapshot)
        await self._require_room(caller)
        spec = self._spec(saved.session.options, caller)
        record = restored_record(saved, spec)
        return await self._open(spec, (), ResumeState(record, saved.stream))

    def _spec(self, options: pb.SessionOptions, caller: Caller) -> SessionSpec:
        """What is asked for, checked. Raises InvalidRequest."""
        config = self._config
        if options.model not in ("", config.model):
            raise InvalidRequest(f"the model {options.model!r} is not loaded here; {config.model!r} is")
        asked = Settings(height=options.height or None, width=options.width or None)
        seed = options.seed if options.HasField("seed") else secrets.randbits(32)
        try:
            stream = replace(
                self._stream,
                seed=seed,
                height=asked.height or self._stream.height,
                width=asked.width or self._stream.width,
            )
        except ConfigError as error:
            raise InvalidRequest(str(error)) from None
        pixels, most = stream.height * stream.width, config.limits.pixels
        if pixels > most:
            raise LimitReached(f"the picture has {pixels} pixels; at most {most} are generated here")
        pace = read_pace(options, config.lease_s)
        return SessionSpec(str(uuid.uuid4()), caller.name, config.model, stream, pace, time.time())

    async def _open(
        self, spec: SessionSpec, cues: tuple[object, ...], resume: ResumeState | None = None
    ) -> pb.Session:
        data = await self._replicas.place(spec.session_id, "open", spec, cues, resume)
        return self._opened(pb.Session.FromString(data))

    def _opened(self, session: pb.Session) -> pb.Session:
        """A session has been opened from here: remember where, and keep it."""
        self._replicas.remember(session.id, session.replica)
        self._spawn(self._keep(session.id))
        return session

    async def _require_room(self, caller: Caller) -> None:
        if not self._config.tokens.digests:
            return
        count, most = len(await self.list(caller)), self._config.limits.sessions_per_token
        if count >= most:
            raise LimitReached(f"{caller.name} has {count} sessions, and may have {most}; end one")

    async def _require_own(self, session_id: str, caller: Caller) -> None:
        """Raise SessionNotFound for a session that is not there, or is somebody else's."""
        if not self._config.tokens.digests:
            return
        if await self._ask(session_id, "caller_of") != caller.name:
            raise SessionNotFound(f"no session {session_id!r} is here; it may have ended")

    # Commands

    @override
    async def command(self, session_id: str, command: pb.Command, caller: Caller) -> pb.Receipt:
        await self._require_own(session_id, caller)
        return await self._command(session_id, command)

    async def _command(self, session_id: str, command: pb.Command, steers: bool = True) -> pb.Receipt:
        # A reset waits for the block that is being made; nothing else waits for anything.
        patience_s = CALL_S if command.HasField("reset") else self._config.silence_s + 1.0
        data = await self._ask(session_id, "command", command.SerializeToString(), steers, timeout_s=patience_s)
        return pb.Receipt.FromString(data)

    # Streams

    @override
    async def watch(self, request: pb.WatchRequest, caller: Caller) -> AsyncIterator[pb.Event]:
        await self._require_own(request.session_id, caller)
        from_frame = request.from_frame if request.HasField("from_frame") else None
        ends = asyncio.get_running_loop().time() + self._config.limits.stream_seconds
        async with aclosing(self._events(request.session_id, Role.VIEWER, from_frame)) as events:
            async for event in events:
                yield event
                if event.HasField("chunk") and asyncio.get_running_loop().time() > ends:
                    return

    @override
    async def interact(self, commands: AsyncIterator[pb.Command], caller: Caller) -> AsyncIterator[pb.Event]:
        first = await anext(aiter(commands), None)
        if first is None or not first.HasField("attach"):
            raise InvalidRequest("the first command of a stream is `attach`, which names the session")
        session_id, control = first.attach.session_id, _Control(first.client_id, first.attach.reattach)
        await self._require_own(session_id, caller)
        from_frame = first.attach.from_frame if first.attach.HasField("from_frame") else None
        answers: asyncio.Queue[pb.Event | None] = asyncio.Queue(maxsize=64)
        followed = asyncio.Event()
        events = self._events(session_id, Role.CONTROLLER, from_frame, followed, control)
        watching = asyncio.create_task(_pour(events, answers))
        obeying = asyncio.create_task(self._obey(session_id, control, commands, answers, followed))
        try:
            while (event := await answers.get()) is not None:
                yield event
            for task in (watching, obeying):
                if task.done() and (failure := task.exception()):
                    raise failure
        finally:
            for task in (watching, obeying):
                task.cancel()
            await asyncio.gather(watching, obeying, return_exceptions=True)
            await events.aclose()

    async def _obey(
        self,
        session_id: str,
        control: _Control,
        commands: AsyncIterator[pb.Command],
        answers: asyncio.Queue[pb.Event | None],
        followed: asyncio.Event,
    ) -> None:
        """Carry out a controller's commands in order; a refused one is answered and ends nothing.

        Each waits until the session is `followed`: receipts come with its events, and would be missed.
        """
        try:
            async for command in commands:
                await followed.wait()
                command.client_id = command.client_id or control.client_id
                try:
                    receipt = await self._command(session_id, command, control.steers)
                    if receipt.repeated:
                        await answers.put(pb.Event(receipt=receipt))
                except ServingError as error:
                    await answers.put(pb.Event(receipt=refusal(command, error)))
        finally:
            await answers.put(None)

    async def _events(
        self,
        session_id: str,
        role: Role,
        from_frame: int | None,
        followed: asyncio.Event | None = None,
        control: _Control | None = None,
    ) -> AsyncGenerator[pb.Event]:
        """A session's events, across the replicas it lives on; no frame is sent twice, none is left out.

        `followed` is set for as long as a replica sends them.
        """
        position, followed = RelayCursor(from_frame), followed or asyncio.Event()
        control = control or _Control("", reattach=False)
        lost_at: float | None = None
        while True:
            try:
                async for item in self._replicas.stream(
                    session_id, "subscribe", role.value, position.next_frame, True,
                    control.client_id, control.reattach,
                ):  # fmt: skip
                    followed.set()
                    control.reattach = True
                    self._replicate(session_id, item)
                    if item.event is None:
                        continue
                    event = pb.Event.FromString(item.event)
                    control.steers &= not event.HasField("replaced")
                    if lost_at is not None:
                        yield self._resumed(event, lost_at)
                        lost_at = None
                    if position.accept(event):
                        yield event
                self._standbys.pop(session_id, None)
                self._recovering.pop(session_id, None)
                return
            except ReplicaLost as lost:
                followed.clear()
                lost_at = lost_at or asyncio.get_running_loop().time()
                logger.warning("replica lost", extra={"session": session_id, "why": str(lost)})
                await self._recover(session_id, lost)

    def _replicate(self, session_id: str, item: Item) -> None:
        if item.delta is not None:
            self._standbys.setdefault(session_id, StandbyCopy()).apply(item.delta)

    def _resumed(self, event: pb.Event, lost_at: float) -> pb.Event:
        resumed = pb.Resumed(frame=event.state.next_frame, reason="another denoiser: its replica was lost")
        resumed.silence.FromMilliseconds(round(1000 * (asyncio.get_running_loop().time() - lost_at)))
        return pb.Event(take=event.take, resumed=resumed)

    async def _keep(self, session_id: str) -> None:
        """Mirror a session until it ends, whether or not anybody watches it."""
        try:
            async for _ in self._events(session_id, Role.STANDBY, None):
                pass
        except ServingError as error:
            logger.info("session no longer kept", extra={"session": session_id, "why": str(error)})
        finally:
            self._standbys.pop(session_id, None)

    # Recovery

    async def _ask(self, session_id: str, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """Call a method of the replica that holds the session; if that is lost, of the one that is next."""
        try:
            return await self._replicas.call(session_id, method, *arguments, timeout_s=timeout_s)
        except (SessionNotFound, ReplicaLost):
            if not await self._has_moved(session_id):
                raise
        return await self._replicas.call(session_id, method, *arguments, timeout_s=timeout_s)

    async def _has_moved(self, session_id: str) -> bool:
        """Whether the session has been opened elsewhere, for which this waits if it is under way."""
        recovering = self._recovering.get(session_id)
        if recovering is None:
            return False
        async with recovering:
            return self._replicas.owner(session_id) is not None

    async def _recover(self, session_id: str, lost: ReplicaLost) -> None:
        """Open a session again from the mirror here, or wait for who has it. Raises SessionNotFound."""
        until = asyncio.get_running_loop().time() + self._config.limits.recovery_seconds
        gone = self._replicas.owner(session_id)
        self._replicas.forget(session_id)
        async with self._recovering.setdefault(session_id, asyncio.Lock()):
            while asyncio.get_running_loop().time() < until:
                if await self._is_elsewhere(session_id, gone):
                    return
                if standby := self._standbys.get(session_id):
                    try:
                        await self._reopen(session_id, standby, gone, str(lost))
                        return
                    except (ReplicaLost, SlotsFull) as error:
                        logger.warning("not reopened yet", extra={"session": session_id, "why": str(error)})
                await asyncio.sleep(LOOK_EVERY_S)
        raise SessionNotFound(f"the session was lost: {lost}, and it could not be opened elsewhere")

    async def _is_elsewhere(self, session_id: str, gone: str | None) -> bool:
        return await self._replicas.locate(session_id, besides=gone) is not None

    async def _reopen(self, session_id: str, standby: StandbyCopy, gone: str | None, reason: str) -> None:
        resume = standby.resume_state(reason)
        session = pb.Session.FromString(await self._replicas.place(session_id, "open", standby.spec, (), resume))
        self._replicas.remember(session_id, session.replica)
        if gone is not None:
            self._spawn(self._replicas.tell(gone, "give_up", session_id, resume.epoch))
        logger.info("session reopened", extra={"session": session_id, "replica": session.replica})

    # Recordings

    @override
    async def start_recording(self, request: pb.StartRecordingRequest, caller: Caller) -> pb.Recording:
        session_id = request.session_id
        session = await self.get(session_id, caller)
        if session.recording:
            raise WrongState(f"the session is being recorded as {session.recording}; stop that first")
        recorder = Recorder(self._recordings[caller.name], session, self._config.limits.recording_frames)
        await self._ask(session_id, "set_recording", recorder.name)
        self._spawn(self._record(session, recorder))
        return recorder.facts()

    @override
    async def stop_recording(self, request: pb.StopRecordingRequest, caller: Caller) -> pb.Recording:
        session_id = request.session_id
        session = await self.get(session_id, caller)
        if not session.recording:
            raise WrongState("the session is not being recorded; start a recording first")
        await self._ask(session_id, "set_recording", "")
        until = asyncio.get_running_loop().time() + FINISH_S
        while asyncio.get_running_loop().time() < until:
            try:
                found = await asyncio.to_thread(self._recordings[caller.name].find, session.recording)
            except WrongState:
                await asyncio.sleep(0.05)
            except SessionNotFound:
                return pb.Recording(name=session.recording, session_id=session_id)
            else:
                return pb.Recording(
                    name=found.name, session_id=found.session_id, first_frame=found.first_frame,
                    frames=found.frames, bytes=found.nbytes, finished=True,
                )  # fmt: skip
        raise ReplicaLost(f"the recording {session.recording} is not finished after {FINISH_S:g} s; ask again")

    @override
    async def read_recording(self, name: str, caller: Caller) -> AsyncIterator[bytes]:
        for piece in self._recordings[caller.name].read(name):
            yield piece

    async def _record(self, session: pb.Session, recorder: Recorder) -> None:
        async with aclosing(self._events(session.id, Role.RECORDER, session.current_start_frame)) as events:
            await recorder.run(events)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the requests, for as long as it takes."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _pour(events: AsyncIterator[pb.Event], answers: asyncio.Queue[pb.Event | None]) -> None:
    try:
        async for event in events:
            await answers.put(event)
    finally:
        await answers.put(None)


def refusal(command: pb.Command, error: ServingError) -> pb.Receipt:
    """The receipt of a refused command."""
    action = (command.WhichOneof("action") or "unspecified").upper()
    known = pb.CommandKind.DESCRIPTOR.values_by_name.get(f"COMMAND_KIND_{action}")
    kind = pb.CommandKind.Name(0 if known is None else known.number)
    stage = pb.RECEIPT_STAGE_REFUSED
    return pb.Receipt(command_id=command.id, command=kind, stage=stage, error=write_error(error))
