"""The ingress on Ray Serve: every method is an RPC of `Sessions`, and HTTP leads to the web application."""

# RPCs are named as in the protocol.
# ruff: noqa: N802

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health_pb2
from ray import serve
from ray.serve._private.long_poll import LongPollClient
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream
from ray.serve.handle import DeploymentHandle

from engines.config.model import ModelConfig
from serving.auth import Caller
from serving.config import ServerConfig
from serving.deployments.replicas.identity import this_deployment, this_deployment_id, this_replica
from serving.deployments.routing import departures
from serving.deployments.routing.kv_register import KvRegister
from serving.deployments.routing.replica_actors import ReplicaActors
from serving.deployments.routing.replica_client import ReplicaClient
from serving.deployments.telemetry.logging_config import join_serve_logs
from serving.deployments.telemetry.metrics import ManagerMetrics
from serving.errors import ReplicaLost, ServingError
from serving.gateway.session_service import SessionService
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent
from serving.protocol.paging import page_of
from serving.protocol.status import code_of, message_of, reason_of, said_beside, write_error
from serving.web.app import web_app

DEPARTURE_S = 0.2
"""How often a manager looks whether it is being taken away, and whether others have its sessions."""

COUNT_EVERY_S = 10.0
"""How often a manager counts how many there are."""

UnaryRpc = Callable[[Any, Any, RayServegRPCContext], Awaitable[Any]]
StreamRpc = Callable[[Any, Any, RayServegRPCContext], AsyncIterator[Any]]


def answered(rpc: Callable[[Any, Any, Caller], Awaitable[Any]]) -> UnaryRpc:
    """A unary RPC: who calls is found out first, and what it raises on purpose becomes a status."""

    async def call(self: SessionManagerReplica, request: Any, grpc_context: RayServegRPCContext) -> Any:
        try:
            return await rpc(self, request, self.caller(grpc_context))
        except ServingError as error:
            _refuse(grpc_context, error)
            raise

    return _named(call, rpc)


def streamed(rpc: Callable[[Any, Any, Caller], AsyncIterator[Any]]) -> StreamRpc:
    """The same for an RPC that answers with a stream."""

    async def call(
        self: SessionManagerReplica, request: Any, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[Any]:
        try:
            async for answer in rpc(self, request, self.caller(grpc_context)):
                yield answer
        except ServingError as error:
            _refuse(grpc_context, error)
            raise

    return _named(call, rpc)


async def said(events: AsyncIterator[SerializedEvent]) -> AsyncIterator[SerializedEvent]:
    """The same, and last the error that they end with; one that comes before all events is the status alone."""
    begun = False
    try:
        async for sent in events:
            begun = True
            yield sent
    except ServingError as error:
        if begun:
            yield SerializedEvent.of(pb.Event(error=write_error(error)))
        raise
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


def _named(call: Any, rpc: Any) -> Any:
    call.__name__, call.__qualname__, call.__doc__ = rpc.__name__, rpc.__qualname__, rpc.__doc__
    return call


def _refuse(context: RayServegRPCContext, error: ServingError) -> None:
    """Answer an error. The proxy makes metadata of the reason: see `grpc_handlers`."""
    context.set_code(code_of(error))
    head = " ".join(filter(None, (reason_of(error), said_beside(error))))
    context.set_details(f"{head}: {message_of(error)}")


@serve.ingress()
class SessionManagerReplica:
    """Hides the replicas from gRPC clients and browsers, and is the standby of the sessions that it opened.

    `model` says how its streams are made.
    """

    def __init__(self, config: ServerConfig, model: ModelConfig, denoisers: DeploymentHandle[Any]) -> None:
        join_serve_logs(tells_refusals=True)
        self._origins = config.origins
        pool = ReplicaClient(denoisers, "denoiser", config.leases.lease_s)
        self._managers = ReplicaActors(this_deployment())
        self._sessions = SessionService(
            pool, KvRegister(), config, model, this_replica(), self._managers.ids, ManagerMetrics()
        )
        self._counted_at = float("-inf")
        self._departure: asyncio.Task[None] | None = None
        self._managers_there: LongPollClient | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        return web_app(self._sessions, self._origins)

    async def check_health(self) -> None:
        """Begin, if that has not been done, to look for sessions whose manager is gone; count the managers.

        Raises where its own sessions are not looked after any more, nor whether it is being taken away.
        """
        self._sessions.start()
        self._sessions.check()
        self._managers_there = self._managers_there or departures.follow(this_deployment_id())
        if self._departure is not None and self._departure.done():
            self._departure.result()
            self._departure = None
        self._departure = self._departure or asyncio.create_task(self._depart())
        await self._count_managers()

    async def _depart(self) -> None:
        """Once Serve takes this manager away, have its sessions and clients go to the others."""
        this, deployment = this_replica(), this_deployment_id()
        while not departures.has_left(this):
            await asyncio.sleep(DEPARTURE_S)
        await self._sessions.finish_moves()
        self._sessions.leave()
        while not departures.staying(deployment):
            await asyncio.sleep(DEPARTURE_S)
        self._sessions.end_streams()

    async def __del__(self) -> None:
        """Serve lets this manager go, which nobody calls any more: its sessions have to be others' before."""
        self._sessions.leave()
        while self._sessions.is_standby and departures.staying(this_deployment_id()):
            await asyncio.sleep(DEPARTURE_S)
        await self._sessions.stop()

    async def _count_managers(self) -> None:
        if (now := time.monotonic()) - self._counted_at < COUNT_EVERY_S:
            return
        self._counted_at = now
        with suppress(ReplicaLost):  # As many as there were.
            self._sessions.share_limits(max(1, len(await self._managers.ids())))

    def caller(self, context: RayServegRPCContext) -> Caller:
        """Who calls. Raises NotAllowed."""
        metadata = dict(context.invocation_metadata())
        scheme, _, token = metadata.get("authorization", "").partition(" ")
        return self._sessions.authenticate(token if scheme.lower() == "bearer" and token else None)

    @answered
    async def DescribeServer(self, request: pb.DescribeServerRequest, caller: Caller) -> pb.DescribeServerResponse:
        return await self._sessions.describe_server(caller)

    @answered
    async def GetServerInfo(self, request: pb.GetServerInfoRequest, caller: Caller) -> pb.GetServerInfoResponse:
        return await self._sessions.server_info(caller)

    @answered
    async def EvacuateServer(self, request: pb.EvacuateServerRequest, caller: Caller) -> pb.EvacuateServerResponse:
        return await self._sessions.evacuate(request, caller)

    @answered
    async def OfferSession(self, request: pb.OfferSessionRequest, caller: Caller) -> Empty:
        await self._sessions.offer(request, caller)
        return Empty()

    @answered
    async def ImportSession(self, request: pb.ImportSessionRequest, caller: Caller) -> pb.Session:
        return await self._sessions.import_session(request, caller)

    @answered
    async def SettleTransfer(self, request: pb.SettleTransferRequest, caller: Caller) -> pb.SettleTransferResponse:
        return await self._sessions.settle(request, caller)

    @answered
    async def CreateSession(self, request: pb.CreateSessionRequest, caller: Caller) -> pb.Session:
        return await self._sessions.create(request, caller)

    @answered
    async def GetSession(self, request: pb.GetSessionRequest, caller: Caller) -> pb.Session:
        return await self._sessions.get(request.session_id, caller)

    @answered
    async def ListSessions(self, request: pb.ListSessionsRequest, caller: Caller) -> pb.ListSessionsResponse:
        return page_of(await self._sessions.list(caller), request)

    @answered
    async def DeleteSession(self, request: pb.DeleteSessionRequest, caller: Caller) -> Empty:
        await self._sessions.delete(request.session_id, caller)
        return Empty()

    @answered
    async def SchedulePrompt(self, request: pb.SchedulePromptRequest, caller: Caller) -> pb.Receipt:
        return await self._command(request, caller, schedule_prompt=request.cue)

    @answered
    async def RemovePrompt(self, request: pb.RemovePromptRequest, caller: Caller) -> pb.Receipt:
        return await self._command(request, caller, remove_prompt=pb.RemovePrompt(frame=request.frame))

    @answered
    async def MovePrompt(self, request: pb.MovePromptRequest, caller: Caller) -> pb.Receipt:
        move = pb.MovePrompt(frame=request.frame, to_frame=request.to_frame)
        return await self._command(request, caller, move_prompt=move)

    @answered
    async def ListAppliedCues(
        self, request: pb.ListAppliedCuesRequest, caller: Caller
    ) -> pb.ListAppliedCuesResponse:
        return await self._sessions.list_applied(request, caller)

    @answered
    async def ListPendingCues(
        self, request: pb.ListPendingCuesRequest, caller: Caller
    ) -> pb.ListPendingCuesResponse:
        return await self._sessions.list_pending(request, caller)

    @answered
    async def Start(self, request: pb.StartRequest, caller: Caller) -> pb.Receipt:
        return await self._command(request, caller, start=pb.Start())

    @answered
    async def Pause(self, request: pb.PauseRequest, caller: Caller) -> pb.Receipt:
        pause = pb.Pause(frame=request.frame) if request.HasField("frame") else pb.Pause()
        return await self._command(request, caller, pause=pause)

    @answered
    async def Resume(self, request: pb.ResumeRequest, caller: Caller) -> pb.Receipt:
        return await self._command(request, caller, resume=pb.Resume())

    @answered
    async def Reset(self, request: pb.ResetRequest, caller: Caller) -> pb.Receipt:
        return await self._command(request, caller, reset=pb.Reset())

    @answered
    async def Cut(self, request: pb.CutRequest, caller: Caller) -> pb.Receipt:
        return await self._command(request, caller, cut=pb.Cut())

    @answered
    async def Restyle(self, request: pb.RestyleRequest, caller: Caller) -> pb.Receipt:
        return await self._command(request, caller, restyle=request.restyling)

    @answered
    async def ForkSession(self, request: pb.ForkSessionRequest, caller: Caller) -> pb.Session:
        return await self._sessions.fork(request, caller)

    @answered
    async def SnapshotSession(
        self, request: pb.SnapshotSessionRequest, caller: Caller
    ) -> pb.SnapshotSessionResponse:
        return await self._sessions.snapshot(request, caller)

    @answered
    async def RestoreSession(self, request: pb.RestoreSessionRequest, caller: Caller) -> pb.Session:
        return await self._sessions.restore(request, caller)

    @answered
    async def StartRecording(self, request: pb.StartRecordingRequest, caller: Caller) -> pb.Recording:
        return await self._sessions.start_recording(request, caller)

    @answered
    async def StopRecording(self, request: pb.StopRecordingRequest, caller: Caller) -> pb.Recording:
        return await self._sessions.stop_recording(request, caller)

    @answered
    async def ListRecordings(self, request: pb.ListRecordingsRequest, caller: Caller) -> pb.ListRecordingsResponse:
        return await self._sessions.list_recordings(request, caller)

    @answered
    async def DeleteRecording(self, request: pb.DeleteRecordingRequest, caller: Caller) -> Empty:
        await self._sessions.delete_recording(request.name, caller)
        return Empty()

    @streamed
    async def ReadRecording(
        self, request: pb.ReadRecordingRequest, caller: Caller
    ) -> AsyncIterator[pb.ReadRecordingResponse]:
        async for data in self._sessions.read_recording(request.name, caller):
            yield pb.ReadRecordingResponse(data=data)

    @streamed
    def Watch(self, request: pb.WatchRequest, caller: Caller) -> AsyncIterator[SerializedEvent]:
        return said(self._sessions.watch(request, caller))

    @streamed
    def Interact(self, request: gRPCInputStream[pb.Command], caller: Caller) -> AsyncIterator[SerializedEvent]:
        return said(self._sessions.interact(request, caller))

    async def Check(
        self, request: health_pb2.HealthCheckRequest, grpc_context: RayServegRPCContext
    ) -> health_pb2.HealthCheckResponse:
        """Of `grpc.health.v1`: serving once a denoiser has its model and answers."""
        ready = await self._sessions.ready()
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)

    async def _command(self, request: Any, caller: Caller, **action: Any) -> pb.Receipt:
        command = pb.Command(id=request.command_id, client_id=request.client_id, **action)
        return await self._sessions.command(request.session_id, command, caller)
