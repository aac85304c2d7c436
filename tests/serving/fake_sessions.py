"""A server of sessions in this process: it paints its pictures, and breaks its streams when it is told to.

Every picture is of one color, which follows from the prompt, with stripes that say which frame it is.
"""

# ruff: noqa: N802 (methods are named as the protocol names them)

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial, wraps
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
from google.protobuf.empty_pb2 import Empty
from numpy.typing import NDArray

from engines.config.geometry import BlockLengths
from serving.errors import (
    ControllerReplaced,
    FrameOutOfRange,
    InvalidRequest,
    NotAllowed,
    ReplicaLost,
    ServingError,
    SessionNotFound,
    SlotsFull,
    TooManyRequests,
    WrongState,
)
from serving.gateway.controller_stream import refusal
from serving.gateway.request_log import RequestLog
from serving.media.chunk import Chunk
from serving.media.encoder import ChunkEncoder
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1.sessions_pb2_grpc import SessionsServicer, add_SessionsServicer_to_server
from serving.protocol.commands import content_of
from serving.protocol.convert import write_receipt
from serving.protocol.paging import page_of
from serving.protocol.status import REASON_KEY, RETRY_KEY, code_of, milliseconds, reason_of, retry_after_of
from serving.session.receipt_log import ReceiptLog
from serving.session.types import CommandKind, Receipt, Refusal, Stage

HEIGHT, WIDTH = 32, 64
STRIPE = WIDTH // 16

BLOCKS = BlockLengths()


def paint(prompt: str, frame: int) -> NDArray[np.uint8]:
    """The lower half in the prompt's color; above it sixteen stripes, the bits of the frame's number."""
    picture = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    picture[:] = np.frombuffer(hashlib.sha256(prompt.encode()).digest()[:3], np.uint8)
    bits = [255 * (frame >> bit & 1) for bit in range(16)]
    picture[: HEIGHT // 2] = np.repeat(bits, STRIPE)[None, :, None]
    return picture


def painted_frame(picture: NDArray[np.uint8]) -> int:
    """The number that the stripes say."""
    stripes = picture[: HEIGHT // 2].reshape(HEIGHT // 2, 16, STRIPE, 3).mean(axis=(0, 2, 3))
    return sum(1 << bit for bit, value in enumerate(stripes) if value > 127)


@dataclass
class Faults:
    """What goes wrong. Each is done once for every number in it."""

    chunks_before_loss: list[int] = field(default_factory=list)
    """Streams that end with UNAVAILABLE after so many chunks, one after the other."""
    falls_silent: bool = False
    """A stream that is lost does not end: nothing comes any more."""
    blocks_while_lost: int = 0
    """Blocks that are made before a client whose stream ended so can come again."""
    commands_lost: int = 0
    """Commands whose stream ends before they are done."""
    receipts_lost: int = 0
    """Commands that are done and whose stream ends without a receipt."""
    receipts_left_out: int = 0
    """Receipts that are missing in a stream which goes on."""
    commands_unavailable: int = 0
    """Commands that are refused because a replica was lost."""
    too_often: int = 0
    """Requests and commands that are refused because they come too often."""
    reports_lost: int = 0
    """Reports of what was shown that come to nothing."""
    requests_lost: int = 0
    """Unary requests with ids that are not done, and answered with UNAVAILABLE."""
    answers_lost: int = 0
    """The same for requests that are done."""
    ends_lost: int = 0
    """Sessions that end, which is answered with UNAVAILABLE."""
    page_size: int = 0
    """Of a list, where nothing is asked for; 0 is the protocol's."""
    watch_chunks: int | None = None
    """After so many chunks Watch ends with OK."""
    kept_chunks: int = 1000
    """Older ones are forgotten."""
    cue_page_size: int = 1000
    """Applied cues a page, whatever is asked for."""


class FakeSession:
    """The rules of a session, as far as a client can tell."""

    def __init__(self, request: pb.CreateSessionRequest, kept_chunks: int) -> None:
        self.id = str(uuid4())
        self.options = pb.SessionOptions(fps=16, ahead=1, seed=7, model="painted", height=HEIGHT, width=WIDTH)
        self.options.MergeFrom(request.options)
        self.subscribers: list[asyncio.Queue[pb.Event | None]] = []
        self.take = self.seq = 0
        self.made = asyncio.Event()
        self.reports: list[int] = []
        self.done: list[str] = []
        self.input: list[str] = []
        self.controller = ""
        self._receipts = ReceiptLog()
        self._steering: asyncio.Queue[pb.Event | None] | None = None
        self._kept_chunks = kept_chunks
        self._encoder = ChunkEncoder(HEIGHT, WIDTH)
        self._created = datetime.now(UTC)
        self._begin()
        for cue in request.cues:
            self._schedule(cue, "")

    def _begin(self) -> None:
        self.state = pb.SESSION_STATE_CREATED
        self.pending: dict[int, tuple[pb.Cue, str]] = {}
        self.applied: list[pb.AppliedCue] = []
        self.chunks: list[pb.Chunk] = []
        self.block = 0
        self.shown = -1
        self.reports.clear()

    @property
    def next_frame(self) -> int:
        return BLOCKS.pixel_frames(self.block)

    @property
    def prompt(self) -> str:
        return self.applied[-1].cue.prompts[0].text if self.applied else ""

    def message(self) -> pb.Session:
        """What `GetSession` answers."""
        return pb.Session(
            id=self.id, state=self.state, options=self.options, take=self.take, next_frame=self.next_frame,
            current_start_frame=self.next_frame, shown_frame=self.shown, prompt=self.prompt,
            pending=[cue for _, (cue, _) in sorted(self.pending.items())], applied=self.applied,
            viewers=len(self.subscribers), create_time=self._created, replica="here",
            oldest_frame=self.chunks[0].first_frame if self.chunks else 0,
        )  # fmt: skip

    def send(self, **event: Any) -> None:
        """To everybody."""
        self.seq += "progress" not in event
        for subscriber in self.subscribers:
            subscriber.put_nowait(pb.Event(take=self.take, seq=self.seq, **event))

    def follow(self, from_frame: int | None) -> asyncio.Queue[pb.Event | None]:
        """Events from here on, after the chunks that reach beyond `from_frame`."""
        subscriber: asyncio.Queue[pb.Event | None] = asyncio.Queue()
        wanted = self.next_frame if from_frame is None else from_frame
        oldest = self.chunks[0].first_frame if self.chunks else 0
        if not oldest <= wanted <= self.next_frame:
            raise FrameOutOfRange(f"frame {wanted} is outside {oldest}..{self.next_frame}")
        subscriber.put_nowait(pb.Event(take=self.take, seq=self.seq, state=self.message()))
        for chunk in self.chunks:
            if chunk.first_frame + len(chunk.units) > wanted:
                subscriber.put_nowait(pb.Event(take=self.take, chunk=chunk))
        self.subscribers.append(subscriber)
        return subscriber

    def attach(self, command: pb.Command, subscriber: asyncio.Queue[pb.Event | None]) -> None:
        """A controller has come, and takes over from the one before it, unless it only returns."""
        replaced = pb.Event(take=self.take, replaced=pb.Replaced())
        if command.attach.reattach and self.controller != command.client_id:
            return subscriber.put_nowait(replaced)
        if self._steering is not None:
            self._steering.put_nowait(replaced)
        self.controller, self._steering = command.client_id, subscriber
        return None

    def is_steered_by(self, subscriber: asyncio.Queue[pb.Event | None]) -> bool:
        return subscriber is self._steering

    def do(self, command: pb.Command, *, steers: bool = True) -> pb.Receipt:
        """Raises a ServingError if it is refused."""
        found = self._receipts.find(command.client_id, command.id, content_of(command))
        if isinstance(found, Refusal):
            raise found.error()
        if found is not None:
            return write_receipt(found, repeated=True)
        try:
            if not steers:
                raise ControllerReplaced("another controller steers the session now")
            receipt = self._do(command)
        except ServingError as error:
            self._receipts.add(command.client_id, command.id, content_of(command), Refusal.of(error))
            raise
        self._receipts.add(command.client_id, command.id, content_of(command), receipt)
        self.done.append(command.WhichOneof("action") or "")
        self.send(receipt=write_receipt(receipt))
        return write_receipt(receipt)

    def _do(self, command: pb.Command) -> Receipt:
        action = command.WhichOneof("action")
        match action:
            case "schedule_prompt":
                return self._receipt(action, command.id, *self._schedule(command.schedule_prompt, command.id))
            case "remove_prompt":
                self._take(command.remove_prompt.frame)
            case "move_prompt":
                cue = self._take(command.move_prompt.frame)
                moved = pb.Cue(frame=command.move_prompt.to_frame, prompts=cue.prompts)
                return self._receipt(action, command.id, *self._schedule(moved, command.id))
            case "start":
                self._change(pb.SESSION_STATE_READY, pb.SESSION_STATE_RUNNING)
            case "pause":
                self._change(pb.SESSION_STATE_RUNNING, pb.SESSION_STATE_PAUSED)
            case "resume":
                self._change(pb.SESSION_STATE_PAUSED, pb.SESSION_STATE_RUNNING)
            case "reset":
                self.take += 1
                self._begin()
                self.send(state=self.message())
        return self._receipt(action, command.id, self.next_frame, 0)

    def _receipt(self, action: str | None, command_id: str, frame: int, cue_frame: int) -> Receipt:
        return Receipt(command_id, CommandKind[(action or "").upper()], Stage.ACCEPTED, frame, cue_frame)

    def _schedule(self, cue: pb.Cue, command_id: str) -> tuple[int, int]:
        frame = cue.frame if cue.HasField("frame") else self.next_frame
        if BLOCKS.block_at(frame) < self.block:
            raise FrameOutOfRange(f"frame {frame} is over; the earliest possible one is {self.next_frame}")
        self.pending[frame] = pb.Cue(frame=frame, prompts=cue.prompts), command_id
        if frame == 0 and self.state == pb.SESSION_STATE_CREATED:
            self.state = pb.SESSION_STATE_READY
            self.send(state=self.message())
        return BLOCKS.pixel_frames(BLOCKS.block_at(frame)), frame

    def _take(self, frame: int) -> pb.Cue:
        if frame not in self.pending:
            raise InvalidRequest(f"no cue is at frame {frame}; cues are at {sorted(self.pending)}")
        return self.pending.pop(frame)[0]

    def _change(self, before: pb.SessionState, after: pb.SessionState) -> None:
        if self.state != before:
            raise WrongState(f"the session is {pb.SessionState.Name(self.state)}")
        self.state = after
        self.send(state=self.message())

    def report(self, frame: int) -> None:
        """What the viewer has seen."""
        self.reports.append(frame)
        self.shown = max(self.shown, frame)

    def end(self) -> None:
        """Over."""
        self.state = pb.SESSION_STATE_ENDED
        self.send(state=self.message())
        for subscriber in self.subscribers:
            subscriber.put_nowait(None)

    async def run(self) -> None:
        """Make blocks as they are due, until the session ends."""
        while self.state != pb.SESSION_STATE_ENDED:
            if self.state == pb.SESSION_STATE_RUNNING and self._due():
                self._make()
            await asyncio.sleep(0.002)

    def make(self, blocks: int) -> None:
        """Whether or not they are due."""
        for _ in range(blocks):
            self._make()

    def _due(self) -> bool:
        """Whether the block that lies `ahead` before the next one is on the screen."""
        seen = -1 if self.shown < 0 else BLOCKS.block_at(self.shown + 1) - 1
        return self.block <= seen + self.options.ahead

    def _make(self) -> None:
        first, end = self.next_frame, BLOCKS.pixel_frames(self.block + 1)
        for frame in sorted(f for f in self.pending if BLOCKS.block_at(f) <= self.block):
            cue, command_id = self.pending.pop(frame)
            self.applied.append(pb.AppliedCue(cue=cue, frame=first))
            self.send(applied=self.applied[-1])
            self.send(receipt=pb.Receipt(
                command_id=command_id, command=pb.COMMAND_KIND_SCHEDULE_PROMPT, stage=pb.RECEIPT_STAGE_APPLIED,
                frame=first, cue_frame=frame,
            ))  # fmt: skip
        pictures = np.stack([paint(self.prompt, frame) for frame in range(first, end)])
        chunk = chunk_message(self._encoder.encode(self.block, first, pictures))
        self.block += 1
        self.chunks = [*self.chunks, chunk][-self._kept_chunks :]
        self.send(chunk=chunk)
        self.send(progress=pb.Progress(current_start_frame=end, generated_fps=100, queued_blocks=1))


def chunk_message(chunk: Chunk) -> pb.Chunk:
    """With an access unit for each frame."""
    return pb.Chunk(
        block=chunk.block,
        first_frame=chunk.first_frame,
        units=[
            pb.AccessUnit(data=unit.data, frame=frame, pts=frame, key=unit.key)
            for frame, unit in enumerate(chunk.units, start=chunk.first_frame)
        ],
    )


def _answering(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Errors become status codes."""

    @wraps(method)
    async def answer(self: FakeServer, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            self.require_token(context)
            self.require_patience()
            self.lose(request, "requests_lost")
            made = await method(self, request)
            self.lose(request, "answers_lost")
            return made
        except ServingError as error:
            await _abort(context, error)

    return answer


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: ServingError) -> None:
    metadata = [(REASON_KEY, reason_of(error))]
    if (seconds := retry_after_of(error)) is not None:
        metadata.append((RETRY_KEY, str(milliseconds(seconds))))
    await context.abort(code_of(error), str(error), tuple(metadata))


class _StreamLost(Exception):
    """On purpose."""


class FakeServer(SessionsServicer):
    """All sessions of a server that has room for `slots`."""

    def __init__(self, slots: int = 4, token: str | None = None) -> None:
        self.faults = Faults()
        self.sessions: dict[str, FakeSession] = {}
        self.watched = 0
        self._slots, self._token = slots, token
        self._making: list[asyncio.Task[None]] = []
        self._answers = RequestLog()
        self._recorded: dict[str, bytes] = {}

    def require_token(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Raises NotAllowed."""
        metadata = dict(context.invocation_metadata() or ())
        if self._token is not None and metadata.get("authorization") != f"Bearer {self._token}":
            raise NotAllowed("the token is missing or unknown")

    def require_patience(self) -> None:
        """Raises TooManyRequests, if that is to happen."""
        if self.faults.too_often:
            self.faults.too_often -= 1
            raise TooManyRequests("slow down", 0.01)

    def session(self, session_id: str) -> FakeSession:
        """Raises SessionNotFound."""
        if session_id not in self.sessions:
            raise SessionNotFound(f"no session is called {session_id}")
        return self.sessions[session_id]

    def lose(self, request: Any, fault: str) -> None:
        """Raise ReplicaLost if that is to happen to a request with ids."""
        left = getattr(self.faults, fault)
        if left and getattr(request, "command_id", ""):
            setattr(self.faults, fault, left - 1)
            raise ReplicaLost("it died over the request")

    @_answering
    async def DescribeServer(self, request: pb.DescribeServerRequest) -> pb.DescribeServerResponse:
        return pb.DescribeServerResponse(model="painted", sizes=[pb.PictureSize(height=HEIGHT, width=WIDTH)])

    @_answering
    async def CreateSession(self, request: pb.CreateSessionRequest) -> pb.Session:
        return await self._answers.once("", request, partial(self._create, request))

    async def _create(self, request: pb.CreateSessionRequest) -> pb.Session:
        if len(self.sessions) >= self._slots:
            raise SlotsFull(f"all {self._slots} sessions are taken")
        session = FakeSession(request, self.faults.kept_chunks)
        self.sessions[session.id] = session
        self._making.append(asyncio.create_task(session.run()))
        return session.message()

    @_answering
    async def GetSession(self, request: pb.GetSessionRequest) -> pb.Session:
        return self.session(request.session_id).message()

    @_answering
    async def ListSessions(self, request: pb.ListSessionsRequest) -> pb.ListSessionsResponse:
        request.page_size = request.page_size or self.faults.page_size
        return page_of([session.message() for session in self.sessions.values()], request)

    @_answering
    async def DeleteSession(self, request: pb.DeleteSessionRequest) -> Empty:
        self.session(request.session_id).end()
        del self.sessions[request.session_id]
        if self.faults.ends_lost:
            self.faults.ends_lost -= 1
            raise ReplicaLost("it died over the end")
        return Empty()

    def _command(self, request: Any, **action: Any) -> pb.Receipt:
        command = pb.Command(id=request.command_id, client_id=request.client_id, **action)
        return self.session(request.session_id).do(command)

    @_answering
    async def SchedulePrompt(self, request: pb.SchedulePromptRequest) -> pb.Receipt:
        return self._command(request, schedule_prompt=request.cue)

    @_answering
    async def RemovePrompt(self, request: pb.RemovePromptRequest) -> pb.Receipt:
        remove = pb.RemovePrompt(frame=request.frame)
        return self._command(request, remove_prompt=remove)

    @_answering
    async def MovePrompt(self, request: pb.MovePromptRequest) -> pb.Receipt:
        move = pb.MovePrompt(frame=request.frame, to_frame=request.to_frame)
        return self._command(request, move_prompt=move)

    @_answering
    async def ListAppliedCues(self, request: pb.ListAppliedCuesRequest) -> pb.ListAppliedCuesResponse:
        applied, start = self.session(request.session_id).applied, int(request.page_token or 0)
        end = start + self.faults.cue_page_size
        token = str(end) if end < len(applied) else ""
        return pb.ListAppliedCuesResponse(applied=applied[start:end], next_page_token=token)

    @_answering
    async def Start(self, request: pb.StartRequest) -> pb.Receipt:
        return self._command(request, start=pb.Start())

    @_answering
    async def Pause(self, request: pb.PauseRequest) -> pb.Receipt:
        return self._command(request, pause=pb.Pause())

    @_answering
    async def Resume(self, request: pb.ResumeRequest) -> pb.Receipt:
        return self._command(request, resume=pb.Resume())

    @_answering
    async def Reset(self, request: pb.ResetRequest) -> pb.Receipt:
        return self._command(request, reset=pb.Reset())

    @_answering
    async def Cut(self, request: pb.CutRequest) -> pb.Receipt:
        return self._command(request, cut=pb.Cut())

    @_answering
    async def Restyle(self, request: pb.RestyleRequest) -> pb.Receipt:
        return self._command(request, restyle=request.restyling)

    async def Watch(
        self, request: pb.WatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.Event]:
        from_frame = request.from_frame if request.HasField("from_frame") else None
        try:
            session = self.session(request.session_id)
            self.watched += 1
            async for event in self._events(session, session.follow(from_frame), self.faults.watch_chunks):
                yield event
        except ServingError as error:
            await _abort(context, error)
        except _StreamLost:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream is lost")

    async def _events(
        self, session: FakeSession, subscriber: asyncio.Queue[pb.Event | None], most: int | None = None
    ) -> AsyncIterator[pb.Event]:
        lost_after = self.faults.chunks_before_loss.pop(0) if self.faults.chunks_before_loss else None
        sent = 0
        try:
            while (event := await subscriber.get()) is not None:
                if sent == lost_after:
                    session.make(self.faults.blocks_while_lost)
                    if self.faults.falls_silent:
                        await asyncio.sleep(3600)
                    raise _StreamLost
                if event.HasField("receipt") and self.faults.receipts_left_out:
                    self.faults.receipts_left_out -= 1
                    continue
                yield event
                sent += event.HasField("chunk")
                if sent == most:
                    return
        finally:
            session.subscribers.remove(subscriber)

    async def Interact(
        self, commands: AsyncIterator[pb.Command], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.Event]:
        try:
            first = await anext(aiter(commands))
            session = self.session(first.attach.session_id)
            subscriber = session.follow(first.attach.from_frame if first.attach.HasField("from_frame") else None)
            session.attach(first, subscriber)
            reading = asyncio.create_task(self._obey(first.client_id, commands, session, subscriber))
            try:
                async for event in self._events(session, subscriber):
                    if event.HasField("error"):
                        raise _StreamLost
                    yield event
            finally:
                reading.cancel()
        except ServingError as error:
            await _abort(context, error)
        except _StreamLost:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream is lost")

    async def _obey(
        self,
        client_id: str,
        commands: AsyncIterator[pb.Command],
        session: FakeSession,
        subscriber: asyncio.Queue[pb.Event | None],
    ) -> None:
        lost = pb.Event(error=pb.Error())
        async for command in commands:
            command.client_id, steers = command.client_id or client_id, session.is_steered_by(subscriber)
            if command.HasField("shown"):
                if self.faults.reports_lost:
                    self.faults.reports_lost -= 1
                elif steers:
                    session.report(command.shown.frame)
                continue
            if command.WhichOneof("action") in ("picture", "end_input"):
                session.input.append(command.WhichOneof("action") or "")
                continue
            if self.faults.commands_lost:
                self.faults.commands_lost -= 1
                return subscriber.put_nowait(lost)
            if self.faults.receipts_lost:
                self.faults.receipts_lost -= 1
                subscriber.put_nowait(lost)
            try:
                if self.faults.commands_unavailable:
                    self.faults.commands_unavailable -= 1
                    raise ReplicaLost("it died over the command")
                self.require_patience()
                receipt = session.do(command, steers=steers)
                if receipt.repeated:
                    subscriber.put_nowait(pb.Event(receipt=receipt))
            except ServingError as error:
                subscriber.put_nowait(pb.Event(receipt=refusal(command, error)))
        return None

    @_answering
    async def StartRecording(self, request: pb.StartRecordingRequest) -> pb.Recording:
        return await self._answers.once("", request, partial(self._start_recording, request))

    async def _start_recording(self, request: pb.StartRecordingRequest) -> pb.Recording:
        if request.session_id in self._recorded:
            raise WrongState("the session is being recorded; stop that first")
        session = self.session(request.session_id)
        self._recorded[session.id] = b"film" * 100_000
        return pb.Recording(name=session.id, session_id=session.id, first_frame=session.next_frame)

    @_answering
    async def StopRecording(self, request: pb.StopRecordingRequest) -> pb.Recording:
        return await self._answers.once("", request, partial(self._stop_recording, request))

    async def _stop_recording(self, request: pb.StopRecordingRequest) -> pb.Recording:
        data = self._recorded[request.session_id]
        name = request.session_id
        return pb.Recording(name=name, session_id=name, bytes=len(data), finished=True)

    @_answering
    async def ListRecordings(self, request: pb.ListRecordingsRequest) -> pb.ListRecordingsResponse:
        names, first = list(self._recorded), int(request.page_token or 0)
        end = first + (self.faults.page_size or len(names))
        found = [pb.Recording(name=name, session_id=name, finished=True) for name in names[first:end]]
        return pb.ListRecordingsResponse(recordings=found, next_page_token=str(end) if end < len(names) else "")

    @_answering
    async def DeleteRecording(self, request: pb.DeleteRecordingRequest) -> Empty:
        if self._recorded.pop(request.name, None) is None:
            raise SessionNotFound(f"there is no recording {request.name}")
        if self.faults.ends_lost:
            self.faults.ends_lost -= 1
            raise ReplicaLost("it died over the end")
        return Empty()

    async def ReadRecording(self, request: pb.ReadRecordingRequest, context: Any) -> AsyncIterator[Any]:
        if request.name not in self._recorded:
            await _abort(context, SessionNotFound(f"there is no recording {request.name}"))
        for piece in _pieces(self._recorded[request.name], 256 << 10):
            yield pb.ReadRecordingResponse(data=piece)

    async def stop(self) -> None:
        """End every session."""
        for making in self._making:
            making.cancel()
        await asyncio.gather(*self._making, return_exceptions=True)


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[begin : begin + size] for begin in range(0, len(data), size))


@asynccontextmanager
async def serving(server: FakeServer) -> AsyncIterator[str]:
    """Answer on a free port; gives `host:port`."""
    listener = grpc.aio.server()
    add_SessionsServicer_to_server(server, listener)  # type: ignore[no-untyped-call]
    port = listener.add_insecure_port("127.0.0.1:0")
    await listener.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop()
        await listener.stop(grace=None)
