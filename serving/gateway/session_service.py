"""The sessions behind gRPC and the page: checks what is asked, and asks the replicas."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path

from typing_extensions import override

from engines.config.model import ModelConfig
from serving.auth import Caller
from serving.background_tasks import wait_without_cancelling
from serving.config import ServerConfig
from serving.errors import (
    InvalidRequest,
    ReplicaLost,
    SessionNotFound,
    SlotsFull,
)
from serving.gateway.api import SessionAPI
from serving.gateway.callers import Callers
from serving.gateway.controller_stream import ControllerStream
from serving.gateway.evacuation import Evacuation, OtherServersByGrpc
from serving.gateway.failover.event_relay import Controller, EventRelay, no_others
from serving.gateway.failover.failover import Failover
from serving.gateway.ownership.metrics import GatewayMetrics, Uncounted
from serving.gateway.ownership.placement import any_answers, ask_all, ask_some, prepare
from serving.gateway.ownership.replica_pool import ANSWER_S, CALL_S, Managers, ReplicaPool
from serving.gateway.ownership.shared_answer import SharedAnswer
from serving.gateway.ownership.standby_session import AlreadyOpen, FirstCopy
from serving.gateway.recording.recordings import Recordings
from serving.gateway.request_log import RequestLog, attempt_of, request_name, require_same, session_id_of
from serving.gateway.session_options import OptionsChecker
from serving.gateway.session_snapshot import pack, restored, unpack
from serving.gateway.spectators import Spectators
from serving.gateway.stream_handoff import StreamHandoff
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.commands import check_size
from serving.protocol.convert import read_cues, require_bytes
from serving.protocol.cue_pages import long_page
from serving.protocol.events import SerializedEvent
from serving.protocol.picture_queue import Batch
from serving.replication.messages import Prepared, ResumeState, Role, SavedSession, SessionSpec
from serving.replication.public_address import PublicAddress
from serving.replication.register import Owner, Register
from serving.session.receipt_log import MAX_ID_CHARACTERS, check_ids
from serving.timeline.cue import Cue
from serving.timeline.formats.document import shown
from serving.timeline.formats.reader import MAX_BYTES as MOST_CREATE_BYTES

MOVED_S, FREED_S, ASK_AGAIN_S = 10.0, 2.0, 0.3
"""How long a session that is to be resumed may take to be moved to a slot that is free, how long one is waited for
where none is, and how often the session is asked meanwhile."""

READY_KEPT_S = 1.0
"""How old the answer may be whether the server is there: who asks often costs the replicas nothing."""

ATTACH_S = 10.0
"""How long a stream may be open without a command."""

SNAPSHOTS_AT_ONCE = 2
"""That are read at a time, each for some seconds at the longest; others wait, and take nobody else's thread."""


class SessionService(SessionAPI):
    """The sessions of the denoisers in `pool`.

    `manager` names this process, and is never used again; `managers` says which ones there are.
    """

    def __init__(
        self,
        pool: ReplicaPool,
        register: Register,
        config: ServerConfig,
        model: ModelConfig,
        manager: str,
        managers: Managers = no_others,
        metrics: GatewayMetrics | None = None,
        others: OtherServersByGrpc | None = None,
    ) -> None:
        metrics = metrics or Uncounted()
        snapshot_bytes = config.limits.snapshot_bytes
        others = others or OtherServersByGrpc(config.operator_token, snapshot_bytes, insecure=config.insecure)
        self._pool, self._register = pool, register
        self._opening_s = max(CALL_S, config.limits.replay_seconds + ANSWER_S)
        self._config = config
        public = PublicAddress()
        self._failover = Failover(
            pool, register, config.leases, manager, metrics, others, snapshot_bytes, managers, public
        )
        self._relay = EventRelay(
            pool, self._failover, managers, config.leases.lease_s,
            config.limits.recovery_seconds, config.limits.restart_seconds, metrics,
        )  # fmt: skip
        self._spectators = Spectators(self._relay, metrics)
        self._handoff = StreamHandoff()
        self._requests = RequestLog()
        self._callers = Callers(
            config, register, partial(self._relay.ask, method="caller_of"), self._failover.beside
        )
        self._options = OptionsChecker(config, model)
        self._rooms: SharedAnswer[dict[str, int]] = SharedAnswer(partial(ask_all, pool, "room"), READY_KEPT_S)
        self._reading = ThreadPoolExecutor(SNAPSHOTS_AT_ONCE, "snapshots")
        self._evacuation = Evacuation(
            register, config, self._options, self._rooms, lambda: self._callers.names, others, public,
            self._reading,
        )  # fmt: skip
        self._follows = False
        self._arriving: set[asyncio.Task[pb.Session]] = set()
        self._ready = SharedAnswer(self._answers, READY_KEPT_S)
        self._recordings = Recordings(
            self._relay, config.recordings, self._callers.names, config.limits, self._failover.beside
        )

    def start(self) -> None:
        """Begin to look after sessions, recordings and the public address. To begin again does nothing."""
        self._failover.start()
        self._recordings.look_after()
        if not self._follows and (address := self._config.public_address) is not None:
            self._follows = True
            self._failover.beside(self._evacuation.follow(address))

    def check(self) -> None:
        """Raise RuntimeError if sessions are not looked after any more."""
        self._failover.check()

    def share_limits(self, managers: int) -> None:
        """Let in a share of what callers may ask: there are so many managers now."""
        self._callers.managers = managers

    def leave(self) -> None:
        """This process is being taken away: its sessions are offered to other managers, and kept until then."""
        self._failover.leave()

    @property
    def is_standby(self) -> bool:
        """Whether there are sessions that no other manager has adopted."""
        return self._failover.is_standby

    async def finish_moves(self) -> None:
        """As `Failover.finish_moves`."""
        await self._failover.finish_moves()

    def end_streams(self) -> None:
        """Have all who watch or steer come again: other managers are there to answer."""
        self._handoff.begin()

    async def stop(self) -> None:
        """Leave the sessions to other managers."""
        self._reading.shutdown(wait=False, cancel_futures=True)
        self._recordings.close()
        await self._failover.stop()

    @override
    def authenticate(self, token: str | None) -> Caller:
        return self._callers.authenticate(token)

    @override
    def admit(self, caller: Caller) -> None:
        self._callers.admit(caller)

    async def ready(self) -> bool:
        """Whether a denoiser is there to open sessions on, or was a second ago."""
        return await self._ready.get()

    async def _answers(self) -> bool:
        try:
            return await any_answers(self._pool)
        except ReplicaLost:
            return False

    @override
    async def describe_server(self, caller: Caller) -> pb.DescribeServerResponse:
        return self._options.describe()

    @override
    async def server_info(self, caller: Caller) -> pb.GetServerInfoResponse:
        return await self._evacuation.server_info()

    # To another server, and from one

    @override
    async def evacuate(self, request: pb.EvacuateServerRequest, caller: Caller) -> pb.EvacuateServerResponse:
        return await self._evacuation.evacuate(request, caller)

    @override
    async def offer(self, request: pb.OfferSessionRequest, caller: Caller) -> None:
        await self._evacuation.offer(request, caller)

    @override
    async def import_session(self, request: pb.ImportSessionRequest, caller: Caller) -> pb.Session:
        spec, resume = await self._evacuation.arrival(request, caller)
        arriving = asyncio.create_task(self._arrive(spec, resume, request.transfer))
        self._arriving.add(arriving)
        arriving.add_done_callback(self._arriving.discard)
        # Who sends it may be gone before it is here; what became of it is then for `settle` to say.
        return await wait_without_cancelling(arriving)

    async def _arrive(self, spec: SessionSpec, resume: ResumeState, transfer: str) -> pb.Session:
        copy = self._new_copy(spec, (), resume)
        session = await self._open(spec.session_id, Caller(spec.caller), copy, transfer)
        await self._evacuation.require_arrived(spec.session_id, transfer)
        return session

    @override
    async def settle(self, request: pb.SettleTransferRequest, caller: Caller) -> pb.SettleTransferResponse:
        return await self._evacuation.settle(request, caller)

    # Opening and closing

    @override
    async def create(self, request: pb.CreateSessionRequest, caller: Caller) -> pb.Session:
        require_bytes("the request", request.ByteSize(), MOST_CREATE_BYTES)
        return await self._requests.once(caller.name, request, lambda: self._create(request, caller))

    async def _create(self, request: pb.CreateSessionRequest, caller: Caller) -> pb.Session:
        await self._evacuation.require_stays()
        cues = await asyncio.to_thread(read_cues, request.cues)
        spec = self._options.read(session_id_of(caller.name, request), request.options, caller)
        return await self._open(spec.session_id, caller, self._new_copy(spec, cues), await attempt_of(request))

    @override
    async def get(self, session_id: str, caller: Caller) -> pb.Session:
        await self._callers.require_own(session_id, caller)
        return pb.Session.FromString(await self._relay.ask(session_id, "describe"))

    @override
    async def list(self, caller: Caller) -> list[pb.Session]:
        mine = await self._callers.sessions(caller)
        directory = self._failover.directory
        owners = await (directory.all_replicas() if mine is None else directory.replicas(mine))
        answers = await ask_some(self._pool, sorted(owners), "sessions_of", caller.name)
        sessions = [pb.Session.FromString(data) for answer in answers.values() for data in answer]
        return sorted(sessions, key=lambda session: session.create_time.ToNanoseconds())

    @override
    async def list_applied(self, request: pb.ListAppliedCuesRequest, caller: Caller) -> pb.ListAppliedCuesResponse:
        await self._callers.require_own(request.session_id, caller)
        self._callers.admit(caller, long_page(request.page_size))
        page = await self._relay.ask(request.session_id, "applied_cues", request.page_token, request.page_size)
        return pb.ListAppliedCuesResponse.FromString(page)

    @override
    async def list_pending(self, request: pb.ListPendingCuesRequest, caller: Caller) -> pb.ListPendingCuesResponse:
        await self._callers.require_own(request.session_id, caller)
        self._callers.admit(caller, long_page(request.page_size))
        page = await self._relay.ask(request.session_id, "pending_cues", request.page_token, request.page_size)
        return pb.ListPendingCuesResponse.FromString(page)

    @override
    async def delete(self, session_id: str, caller: Caller) -> None:
        await self._callers.require_own(session_id, caller)
        await self._failover.end(session_id, "it was deleted")

    @override
    async def fork(self, request: pb.ForkSessionRequest, caller: Caller) -> pb.Session:
        return await self._requests.once(caller.name, request, lambda: self._fork(request, caller))

    async def _fork(self, request: pb.ForkSessionRequest, caller: Caller) -> pb.Session:
        await self._evacuation.require_stays()
        await self._callers.require_own(request.session_id, caller)
        session_id = session_id_of(caller.name, request)
        forked = self._forked_copy(request, session_id, caller)
        return await self._open(session_id, caller, forked, await attempt_of(request))

    @override
    async def snapshot(self, request: pb.SnapshotSessionRequest, caller: Caller) -> pb.SnapshotSessionResponse:
        await self._callers.require_own(request.session_id, caller)
        if request.kind not in (pb.SNAPSHOT_KIND_UNSPECIFIED, pb.SNAPSHOT_KIND_LIGHT):
            raise InvalidRequest(f"kind {request.kind} of a snapshot is unknown; known: 1 (light)")
        most = self._config.limits.snapshot_bytes
        session, stream = await self._relay.ask(request.session_id, "save", most, timeout_s=CALL_S)
        saved = SavedSession(pb.Session.FromString(session), stream)
        snapshot = await asyncio.to_thread(pack, saved, most)
        return pb.SnapshotSessionResponse(
            snapshot=snapshot, next_frame=saved.session.next_frame, kind=pb.SNAPSHOT_KIND_LIGHT
        )

    @override
    async def restore(self, request: pb.RestoreSessionRequest, caller: Caller) -> pb.Session:
        require_bytes("the snapshot", len(request.snapshot), self._config.limits.snapshot_bytes)
        return await self._requests.once(caller.name, request, lambda: self._restore(request, caller))

    async def _restore(self, request: pb.RestoreSessionRequest, caller: Caller) -> pb.Session:
        await self._evacuation.require_stays()
        loop = asyncio.get_running_loop()
        saved = await loop.run_in_executor(self._reading, unpack, request.snapshot)
        spec = self._options.read(session_id_of(caller.name, request), saved.session.options, caller)
        resume = await loop.run_in_executor(self._reading, restored, saved, spec)
        return await self._open(
            spec.session_id, caller, self._new_copy(spec, (), resume), await attempt_of(request)
        )

    async def _open(self, session_id: str, caller: Caller, first: FirstCopy, attempt: str) -> pb.Session:
        """A new session; or the one that another manager has opened for the same request.

        Raises LimitReached for one more than the caller may have, and CommandIdReused where the other manager was
        asked for something else.
        """
        await self._callers.reserve(session_id, caller)
        try:
            return await self._failover.open(session_id, first, attempt)
        except AlreadyOpen:
            opened = await self._register.first(session_id)
            if isinstance(opened, Owner):
                require_same(session_id, attempt, opened.attempt)
            return pb.Session.FromString(await self._relay.ask(session_id, "describe"))
        except BaseException:
            self._callers.release(session_id, caller)
            raise

    def _new_copy(self, spec: SessionSpec, cues: tuple[Cue, ...], resume: ResumeState | None = None) -> FirstCopy:
        return lambda attempt, tried: prepare(
            self._pool,
            self._failover.contacts,
            attempt,
            spec,
            cues,
            resume,
            tried=tried,
            timeout_s=self._opening_s,
        )

    def _forked_copy(self, request: pb.ForkSessionRequest, session_id: str, caller: Caller) -> FirstCopy:
        frame = request.frame if request.HasField("frame") else None

        async def fork(attempt: str, tried: Callable[[str], None]) -> Prepared:
            tried((await self._failover.directory.owner(request.session_id)).owner.replica)
            made: Prepared = await self._relay.ask(
                request.session_id, "fork", attempt, session_id, caller.name, frame, timeout_s=self._opening_s
            )
            return made

        return fork

    # Commands

    @override
    async def command(self, session_id: str, command: pb.Command, caller: Caller) -> pb.Receipt:
        check_size(command)
        await self._callers.require_own(session_id, caller)
        return await self._command(session_id, command, steers=False)

    async def _command(self, session_id: str, command: pb.Command, *, steers: bool) -> pb.Receipt:
        # A reset waits for the block that is being made, and a suspended session for its window.
        patience_s = CALL_S if command.HasField("reset") or command.HasField("resume") else None
        arguments, began = (command.SerializeToString(), steers), asyncio.get_running_loop().time()
        while True:
            try:
                data = await self._relay.ask(session_id, "command", *arguments, timeout_s=patience_s)
                return pb.Receipt.FromString(data)
            except SlotsFull:
                # A suspended session that is to be resumed moves to where there is room.
                has_room = any((await self._rooms.get()).values())
                if asyncio.get_running_loop().time() - began > (MOVED_S if has_room else FREED_S):
                    raise
            await asyncio.sleep(ASK_AGAIN_S)

    # Streams

    @override
    def watch(self, request: pb.WatchRequest, caller: Caller) -> AsyncIterator[SerializedEvent]:
        from_frame = request.from_frame if request.HasField("from_frame") else None
        admit = partial(self._callers.require_own, request.session_id, caller)
        seconds = self._config.limits.stream_seconds
        return self._handoff.while_here(self._spectators.watch(request.session_id, from_frame, seconds, admit))

    @override
    async def interact(
        self, commands: AsyncIterator[pb.Command], caller: Caller
    ) -> AsyncIterator[SerializedEvent]:
        first = await _first_of(commands)
        if first is None or not first.HasField("attach"):
            raise InvalidRequest("the first command of a stream is `attach`, which names the session")
        session_id, client_id = first.attach.session_id, first.client_id or uuid.uuid4().hex
        check_ids(client_id, first.id)
        if len(session_id) > MAX_ID_CHARACTERS:
            raise SessionNotFound(f"no session {shown(session_id)} is here; it may have ended")
        await self._callers.require_own(session_id, caller)
        self._callers.admit_controller(session_id)
        from_frame = first.attach.from_frame if first.attach.HasField("from_frame") else None
        followed, controller = asyncio.Event(), Controller(client_id, first.attach.reattach)
        events = self._relay.events(session_id, Role.CONTROLLER, from_frame, followed, controller)

        async def apply(command: pb.Command) -> pb.Receipt:
            if not command.HasField("shown"):
                self.admit(caller)
            return await self._command(session_id, command, steers=True)

        async def commands_ended() -> None:
            with suppress(SessionNotFound, ReplicaLost):  # The stream of events says so.
                await self._relay.ask(session_id, "reports_ended", client_id)

        async def pass_on(batch: Batch) -> None:
            pictures = [command.SerializeToString() for command in batch.commands]
            await self._relay.ask(session_id, "take_pictures", client_id, pictures, batch.dropped)

        stream = ControllerStream(client_id, events, followed, apply, commands_ended, pass_on)
        async with aclosing(self._handoff.while_here(stream.run(commands))) as answers:
            async for sent in answers:
                yield sent

    # Recordings

    @override
    async def start_recording(self, request: pb.StartRecordingRequest, caller: Caller) -> pb.Recording:
        async def start() -> pb.Recording:
            session = await self.get(request.session_id, caller)
            return await self._recordings.start(session, caller.name, request_name(caller.name, request))

        return await self._requests.once(caller.name, request, start)

    @override
    async def stop_recording(self, request: pb.StopRecordingRequest, caller: Caller) -> pb.Recording:
        async def stop() -> pb.Recording:
            session = await self.get(request.session_id, caller)
            return await self._recordings.stop(session, caller.name, request_name(caller.name, request))

        return await self._requests.once(caller.name, request, stop)

    @override
    async def list_recordings(
        self, request: pb.ListRecordingsRequest, caller: Caller
    ) -> pb.ListRecordingsResponse:
        return await self._recordings.page(request, caller.name)

    @override
    async def delete_recording(self, name: str, caller: Caller) -> None:
        await self._recordings.delete(name, caller.name)

    @override
    def read_recording(self, name: str, caller: Caller) -> AsyncIterator[bytes]:
        return self._recordings.read(name, caller.name)

    @override
    def recording_file(self, name: str, caller: Caller) -> Path:
        return self._recordings.file(name, caller.name)


async def _first_of(commands: AsyncIterator[pb.Command]) -> pb.Command | None:
    """The first command of a stream; None if it has none. Raises InvalidRequest if none comes."""
    try:
        async with asyncio.timeout(ATTACH_S):
            return await anext(aiter(commands), None)
    except TimeoutError:
        raise InvalidRequest(f"no command came within {ATTACH_S:g} s; begin a stream with `attach`") from None
