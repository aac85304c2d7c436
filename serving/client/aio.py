"""A client of the server for asyncio: sessions over gRPC, as the protocol describes them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from serving.client.connections import Connections, authorization, open_channel, require_private
from serving.client.event_stream import EventStream
from serving.client.interactive import InteractiveSession, Reports
from serving.client.unary_calls import UnaryCalls
from serving.media.clips.picture_scaler import Fit
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.requests import (
    APPLICATION,
    APPLICATION_KEY,
    message,
    new_cue,
    new_cues,
    session_options,
    write_restyling,
)
from serving.timeline.cue import Blend, Cue, Restyling, Transition

SERVER = "localhost:9000"

LOOK_S = 5.0
"""The longest that an answer is waited for where a stream has gone quiet."""

PATIENCE_S = 30.0
"""How long a lost stream is tried to be had again, and a request whose answer was lost is made again."""

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # A channel is a connection of its own: a second one to the same address may lead to another server.
    ("grpc.use_local_subchannel_pool", 1),
    # By default a server that is there again is seen up to two minutes later.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class AsyncClient:
    """Calls one server. Made, used and closed within one event loop.

    Every method raises the SessionError that the server answers, and ReplicaLost where it cannot be reached or has
    lost the request on the way. What changes something is asked for again, with the same ids, for up to
    `patience_s`: it is done once. What came too often comes again when the server takes it. A session that moves
    to another server is followed there. `token` is what the server was told to ask for; `tls` is for a gateway in
    front. Without `tls` a token goes to this machine only, unless `insecure` says that others may read it on its
    way: InsecureToken is raised.
    """

    def __init__(
        self, server: str = SERVER, *, token: str | None = None, tls: bool = False, insecure: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> None:  # fmt: skip
        self.server = server
        self._has_token, self._tls, self._insecure = token is not None, tls, insecure
        self.client_id = uuid.uuid4().hex
        self._patience_s = patience_s
        self.metadata = ((APPLICATION_KEY, APPLICATION), *([] if token is None else [authorization(token)]))
        self._connections = Connections(server, self._open_channel)
        self._calls = UnaryCalls(self._connections, self.metadata, self.client_id, patience_s)

    @property
    def stub(self) -> Any:
        """The service of the server, for calls as they are in the protocol."""
        return self._connections.first.stub

    def _open_channel(self, server: str) -> grpc.aio.Channel:
        if self._has_token:
            require_private(server, tls=self._tls, insecure=self._insecure)
        return open_channel(server, CHANNEL_OPTIONS, tls=self._tls)

    async def close(self) -> None:
        """End every stream, and the connection."""
        await self._connections.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def describe_server(self) -> pb.DescribeServerResponse:
        """What the server generates: its model, picture sizes and limits."""
        return await self._calls.call("DescribeServer", pb.DescribeServerRequest())

    async def server_info(self) -> pb.GetServerInfoResponse:
        """Which server this is: its release, its cluster, and what it takes over from another one."""
        return await self._calls.call("GetServerInfo", pb.GetServerInfoRequest())

    async def create(
        self,
        *,
        model: str = "",
        seed: int | None = None,
        height: int = 0,
        width: int = 0,
        fps: int | None = None,
        ahead: int | None = None,
        lease_s: float | None = None,
        restyles: bool = False,
        fit: Fit | None = None,
        noise_scale: float | None = None,
        cues: Iterable[Cue] = (),
    ) -> pb.Session:
        """Open a session; one that `restyles` takes pictures. What is not said is left to the server.

        Raises SlotsFull if it has no place left; `retry_after_s` of it says when there may be one.
        """
        options = session_options(
            model=model,
            seed=seed,
            height=height,
            width=width,
            fps=fps,
            ahead=ahead,
            lease_s=lease_s,
            restyles=restyles,
            fit=fit,
            noise_scale=noise_scale,
        )
        request = message(pb.CreateSessionRequest, options=options, cues=new_cues(cues))
        return await self._calls.ask("CreateSession", request)

    async def get(self, session_id: str) -> pb.Session:
        """How a session stands."""
        return await self._calls.call("GetSession", message(pb.GetSessionRequest, session_id=session_id))

    async def list(self) -> list[pb.Session]:
        """The caller's sessions, the oldest first, without their cues."""
        sessions: list[pb.Session] = []
        async for page in self._calls.pages("ListSessions", pb.ListSessionsRequest()):
            sessions += page.sessions
        return sessions

    async def delete(self, session_id: str) -> None:
        """End a session."""
        await self._calls.delete("DeleteSession", message(pb.DeleteSessionRequest, session_id=session_id))

    async def schedule(
        self,
        session_id: str,
        prompt: str | Blend,
        frame: int | None = None,
        transition: Transition | None = None,
        restyling: Restyling | None = None,
    ) -> pb.Receipt:
        """Schedule a cue at `frame`, over one that is there already; None is now."""
        cue = new_cue(prompt, frame, transition, restyling)
        request = message(pb.SchedulePromptRequest, session_id=session_id, cue=cue)
        return await self._calls.ask("SchedulePrompt", request)

    async def remove(self, session_id: str, frame: int) -> pb.Receipt:
        """Take the pending cue at `frame` away."""
        request = message(pb.RemovePromptRequest, session_id=session_id, frame=frame)
        return await self._calls.ask("RemovePrompt", request)

    async def move(self, session_id: str, frame: int, to_frame: int) -> pb.Receipt:
        """Move the pending cue at `frame`."""
        request = message(pb.MovePromptRequest, session_id=session_id, frame=frame, to_frame=to_frame)
        return await self._calls.ask("MovePrompt", request)

    async def applied_cues(self, session_id: str) -> AsyncGenerator[pb.AppliedCue]:
        """The cues that have applied in this take, in order, asked for a page at a time."""
        request = message(pb.ListAppliedCuesRequest, session_id=session_id, page_size=1000)
        async for page in self._calls.pages("ListAppliedCues", request):
            for applied in page.applied:
                yield applied

    async def pending_cues(self, session_id: str) -> AsyncGenerator[pb.Cue]:
        """The cues that have not applied yet, by frame, asked for a page at a time."""
        request = message(pb.ListPendingCuesRequest, session_id=session_id, page_size=1000)
        async for page in self._calls.pages("ListPendingCues", request):
            for cue in page.pending:
                yield cue

    async def start(self, session_id: str) -> pb.Receipt:
        """Start generation; a cue must be at frame 0."""
        return await self._calls.ask("Start", message(pb.StartRequest, session_id=session_id))

    async def pause(self, session_id: str, frame: int | None = None) -> pb.Receipt:
        """Stop at `frame`, the last that was seen; None is the last one reported, or what the clock says."""
        return await self._calls.ask("Pause", message(pb.PauseRequest, session_id=session_id, frame=frame))

    async def resume(self, session_id: str) -> pb.Receipt:
        """Go on where `pause` stopped."""
        return await self._calls.ask("Resume", message(pb.ResumeRequest, session_id=session_id))

    async def reset(self, session_id: str) -> pb.Receipt:
        """Go back to an empty timeline and frame 0."""
        return await self._calls.ask("Reset", message(pb.ResetRequest, session_id=session_id))

    async def cut(self, session_id: str) -> pb.Receipt:
        """Open a restyled video anew with the next pictures."""
        return await self._calls.ask("Cut", message(pb.CutRequest, session_id=session_id))

    async def restyle(self, session_id: str, restyling: Restyling) -> pb.Receipt:
        """Restyle the next pictures otherwise, under the prompt in force."""
        told = write_restyling(restyling)
        return await self._calls.ask("Restyle", message(pb.RestyleRequest, session_id=session_id, restyling=told))

    async def fork(self, session_id: str, frame: int | None = None) -> pb.Session:
        """Open a session with the same past, up to the block that contains `frame`; None is the present block."""
        request = message(pb.ForkSessionRequest, session_id=session_id, frame=frame)
        return await self._calls.ask("ForkSession", request)

    async def snapshot(self, session_id: str) -> bytes:
        """The bytes from which `restore` goes on."""
        request = message(pb.SnapshotSessionRequest, session_id=session_id, kind=pb.SNAPSHOT_KIND_LIGHT)
        return (await self._calls.call("SnapshotSession", request)).snapshot

    async def restore(self, snapshot: bytes) -> pb.Session:
        """Open a session that goes on where a snapshot was taken."""
        return await self._calls.ask("RestoreSession", message(pb.RestoreSessionRequest, snapshot=snapshot))

    async def start_recording(self, session_id: str) -> pb.Recording:
        """Begin to write an MP4 file on the server, with the next chunk."""
        return await self._calls.ask("StartRecording", message(pb.StartRecordingRequest, session_id=session_id))

    async def stop_recording(self, session_id: str) -> pb.Recording:
        """Finish the file."""
        return await self._calls.ask("StopRecording", message(pb.StopRecordingRequest, session_id=session_id))

    async def watch(self, session_id: str, from_frame: int | None = None) -> AsyncGenerator[pb.Event]:
        """A session's events, from the chunk that contains `from_frame` on; None is from now on.

        A lost stream is opened again, and no frame comes twice. Frames that are not kept any more by then, or that
        came too fast for this viewer, leave a `gap` event.
        """
        watch, describe = partial(self._watch, session_id), partial(self._describe, session_id)
        moved = partial(self._connections.follow, session_id)
        stream = EventStream(watch, describe, moved, from_frame, self._patience_s)
        async with aclosing(stream.events()) as events:
            async for event in events:
                yield event

    def control(
        self, session: pb.Session, from_frame: int | None = None, reports: Reports | None = None
    ) -> InteractiveSession:
        """Take `session` over, to steer it: `async with client.control(session) as controller`.

        Frames come as from `watch`. `reports` says which of them the server is told were shown: if "received", it
        goes on as fast as they are taken; if "played", as fast as a player shows them. Without it, those of an
        unpaced session are received, and others played.
        """
        describe = partial(self._describe, session.id)
        interact, moved = partial(self._interact, session.id), partial(self._connections.follow, session.id)
        return InteractiveSession(interact, describe, moved, session, from_frame, self._patience_s, reports)

    async def recordings(self) -> AsyncGenerator[pb.Recording]:
        """The caller's finished recordings, the oldest first, asked for a page at a time."""
        async for page in self._calls.pages("ListRecordings", pb.ListRecordingsRequest()):
            for recording in page.recordings:
                yield recording

    async def delete_recording(self, name: str) -> None:
        """Remove a finished recording."""
        await self._calls.delete("DeleteRecording", message(pb.DeleteRecordingRequest, name=name))

    async def read_recording(self, name: str) -> AsyncGenerator[bytes]:
        """The bytes of a finished recording, piece by piece."""
        call = self._at("").ReadRecording(message(pb.ReadRecordingRequest, name=name), metadata=self.metadata)
        try:
            async for piece in call:
                yield piece.data
        except grpc.aio.AioRpcError as error:
            raise self._calls.refusal(error) from error
        finally:
            call.cancel()

    async def _watch(self, session_id: str, from_frame: int | None) -> Any:
        request = message(pb.WatchRequest, session_id=session_id, from_frame=from_frame)
        return self._at(session_id).Watch(request, metadata=self.metadata)

    def _interact(self, session_id: str) -> Any:
        return self._at(session_id).Interact(metadata=self.metadata)

    def _at(self, session_id: str) -> Any:
        return self._connections.of(session_id).stub

    async def _describe(self, session_id: str) -> pb.Session:
        """How a session stands, asked by a stream that cannot wait for long."""
        request = message(pb.GetSessionRequest, session_id=session_id)
        return await self._calls.call("GetSession", request, LOOK_S)
