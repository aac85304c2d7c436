"""One WebSocket: a session's events go out, a client's messages come in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import NamedTuple, TypeVar

from cachetools import TTLCache
from fastapi import WebSocket, status
from fastapi.websockets import WebSocketDisconnect, WebSocketState

from serving.auth import Caller
from serving.background_tasks import wait_without_cancelling
from serving.errors import (
    ReplicaLost,
    ServingError,
    TooManyRequests,
    Unforeseen,
    WrongState,
)
from serving.gateway.api import SessionAPI
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent
from serving.protocol.status import foreseen, log_refusal, message_of
from serving.rate_limit import RateLimit
from serving.timeline.formats.document import Json
from serving.web.inbound import NOTHING, Request, open_envelope, read_message
from serving.web.json_format import error_json, recording_json, refusal_json, session_json
from serving.web.outbound import EventWriter, state_text, text
from serving.web.pictures import read_picture
from serving.web.query import Address
from serving.web.segments import SegmentCache

T = TypeVar("T")

WAITING_COMMANDS = 64
"""More are not read until these are done."""

REQUESTS_AT_ONCE = 4

SHORT_CHARACTERS = 256
"""Longer messages are read in a thread: one of a megabyte takes some 70 ms, which are everybody's."""

LOGGED_PER_SECOND, LOGGED_AT_ONCE = 1.0, 10.0
"""Refused messages of one client: it may send nonsense without end, and is answered each time."""

ANSWERS_S = 5.0
"""How long a stream that has ended waits for what its client has asked for."""

REFRESH_S = 0.05
"""Receipts that come within this are answered by one `state`."""

SHARED_S, SHARED_STATES = 1.0, 4096
"""How long, and how many at a time, states are kept for others who hear of the same news."""

_CUE_COMMANDS = (
    pb.COMMAND_KIND_SCHEDULE_PROMPT,
    pb.COMMAND_KIND_REMOVE_PROMPT,
    pb.COMMAND_KIND_MOVE_PROMPT,
    pb.COMMAND_KIND_CUT,
    pb.COMMAND_KIND_RESTYLE,
)


class State(NamedTuple):
    """How a session stands, and the message that says so."""

    session: pb.Session
    text: str

    @classmethod
    async def of(cls, ask: Callable[[], Awaitable[pb.Session]]) -> State:
        """What `ask` answers."""
        session = await ask()
        return cls(session, state_text(session))


class SharedStates:
    """How sessions stand, each asked once for all who have heard the same of it."""

    def __init__(self) -> None:
        self._asked: TTLCache[tuple[str, int], asyncio.Task[State]] = TTLCache(SHARED_STATES, SHARED_S)

    async def after(self, session_id: str, seq: int, ask: Callable[[], Awaitable[pb.Session]]) -> State:
        """How a session stands behind its event `seq`, as somebody who had heard of that asked by `ask`.

        Raises what `ask` does.
        """
        key = session_id, seq
        if (asked := self._asked.get(key)) is None:
            asked = self._asked[key] = asyncio.create_task(State.of(ask))
        return await wait_without_cancelling(asked)


class Conversation:
    """A client steers a session, or only watches it; several tasks send to one socket.

    After what changes the cues of a session its `state` is sent anew, so that nobody need keep count of them.
    """

    def __init__(
        self, socket: WebSocket, sessions: SessionAPI, caller: Caller, segments: SegmentCache, states: SharedStates
    ) -> None:
        self._socket, self._sessions, self._caller = socket, sessions, caller
        self._writer, self._shared = EventWriter(segments), states
        self._commands: asyncio.Queue[pb.Command] = asyncio.Queue(WAITING_COMMANDS)
        self._requests = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._logged = RateLimit(LOGGED_PER_SECOND, LOGGED_AT_ONCE)
        self._answering: set[asyncio.Task[None]] = set()
        self._refreshing: asyncio.Task[None] | None = None
        self._news = self._states = 0
        self._watches = False

    async def run(self, address: Address) -> None:
        """Talk until either side ends it. Raises what says why the session cannot be had."""
        session = await self._open(address)
        self._id, self._watches, self._client_id = session.id, address.watch, address.client_id
        attach = pb.Attach(
            session_id=session.id, from_frame=address.first_frame(session), reattach=address.reattach
        )
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(self._send_events(attach, tasks))
            await self._receive(tasks)
            for task in (sending, *self._answering):
                task.cancel()

    async def _open(self, address: Address) -> pb.Session:
        if address.session is not None:
            return await self._sessions.get(address.session, self._caller)
        request = pb.CreateSessionRequest(
            options=address.options, client_id=address.client_id, command_id=address.command_id
        )
        return await self._sessions.create(request, self._caller)

    # Out

    async def _send_events(self, attach: pb.Attach, tasks: asyncio.TaskGroup) -> None:
        """Send until the stream ends, and say why it did; a spectator may come again.

        The answer to whoever ended the session may come later than the end of its stream.
        """
        failure: Exception | None = None
        try:
            async with _closing(self._events(attach)) as events:
                async for sent in events:
                    await self._send(*self._writer.write(sent.event))
                    self._refresh_after(sent.event, tasks)
        except Exception as error:
            failure = error
        if self._answering:
            await asyncio.wait(self._answering, timeout=ANSWERS_S)
        if failure is not None:
            await turn_away(self._socket, failure)
        elif is_open(self._socket):
            await self._socket.close(status.WS_1001_GOING_AWAY)

    def _events(self, attach: pb.Attach) -> AsyncIterator[SerializedEvent]:
        if self._watches:
            request = pb.WatchRequest(session_id=self._id, from_frame=attach.from_frame)
            return self._sessions.watch(request, self._caller)
        return self._sessions.interact(self._attached(attach), self._caller)

    async def _attached(self, attach: pb.Attach) -> AsyncIterator[pb.Command]:
        yield pb.Command(client_id=self._client_id, attach=attach)
        while True:
            yield await self._commands.get()

    def _refresh_after(self, event: pb.Event, tasks: asyncio.TaskGroup) -> None:
        changed = event.HasField("applied") or event.receipt.command in _CUE_COMMANDS
        self._states += event.HasField("state")
        if changed or event.HasField("state"):
            self._news = event.seq
        if changed and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = tasks.create_task(self._refresh())

    async def _refresh(self) -> None:
        """Send the session's state until there is no news of it; one that others overtook is left out."""
        told, ask = -1, partial(self._sessions.get, self._id, self._caller)
        while told != self._news:
            await asyncio.sleep(REFRESH_S)
            told, states = self._news, self._states
            try:
                state = await self._shared.after(self._id, told, ask)
            except Exception as error:
                foreseen(error, "asking how a session stands")
                return  # The stream of events says what has become of it.
            if states == self._states:
                self._writer.stands(state.session)
                await self._send(state.text)

    async def _send(self, *messages: str | bytes) -> None:
        """Send, unless either side has closed by now."""
        for message in messages:
            if not is_open(self._socket):
                return
            with suppress(WebSocketDisconnect):
                if isinstance(message, str):
                    await self._socket.send_text(message)
                else:
                    await self._socket.send_bytes(message)

    # In

    async def _receive(self, tasks: asyncio.TaskGroup) -> None:
        """Take messages until the client has gone."""
        while (message := await self._socket.receive())["type"] != "websocket.disconnect":
            if (data := message.get("bytes")) is not None:
                await self._take_picture(data)
            else:
                await self._take(message["text"], tasks)

    async def _take_picture(self, data: bytes) -> None:
        try:
            await self._command(read_picture(data))
        except Exception as error:
            await self._refuse("", "picture", error)

    async def _take(self, message: str, tasks: asyncio.TaskGroup) -> None:
        envelope = NOTHING
        try:
            if len(message) <= SHORT_CHARACTERS:
                envelope = open_envelope(message)
                asked = read_message(envelope)
            else:
                envelope = await asyncio.to_thread(open_envelope, message)
                asked = await asyncio.to_thread(read_message, envelope)
            if isinstance(asked, Request):
                self._sessions.admit(self._caller)
                await self._requests.acquire()
                answering = tasks.create_task(self._answer(asked))
                self._answering.add(answering)
                answering.add_done_callback(self._answering.discard)
            else:
                await self._command(asked)
        except Exception as error:
            await self._refuse(envelope.id, envelope.type, error)

    async def _command(self, command: pb.Command) -> None:
        if not self._watches:
            await self._commands.put(command)
        elif not command.HasField("shown"):
            raise WrongState("this connection only watches; open one without `watch` to steer")

    async def _answer(self, request: Request) -> None:
        try:
            await self._send(await self._granted(request))
        except Exception as error:
            await self._refuse(request.id, request.kind, error)
        finally:
            self._requests.release()

    async def _granted(self, request: Request) -> str:
        answer: dict[str, Json] = {"command_id": request.id}
        ids = {"session_id": self._id, "client_id": self._client_id, "command_id": request.id}
        match request.kind:
            case "fork":
                fork = pb.ForkSessionRequest(**ids, frame=request.frame)
                return text("forked", answer | session_json(await self._sessions.fork(fork, self._caller)))
            case "start_recording":
                recording = await self._sessions.start_recording(pb.StartRecordingRequest(**ids), self._caller)
            case "stop_recording":
                recording = await self._sessions.stop_recording(pb.StopRecordingRequest(**ids), self._caller)
            case "end":
                await self._sessions.delete(self._id, self._caller)
                return text("ended", answer)
        return text("recording", answer | recording_json(recording))

    async def _refuse(self, id: str, type: str, error: Exception) -> None:
        told = foreseen(error, type or "a message")
        with suppress(TooManyRequests):
            self._logged.take("", "refusals are logged")
            log_refusal(told)
        happened: dict[str, Json] = {"event": "error", "message": message_of(told)}
        await self._send(text("receipt", refusal_json(id, type, told)), text("event", happened))


def close_code(error: ServingError) -> int:
    """How a WebSocket ends with `error`: the same may work later, or it will not, or nobody knows."""
    if isinstance(error, Unforeseen):
        return status.WS_1011_INTERNAL_ERROR
    may_work_later = isinstance(error, ReplicaLost | TooManyRequests)
    return status.WS_1013_TRY_AGAIN_LATER if may_work_later else status.WS_1008_POLICY_VIOLATION


def is_open(socket: WebSocket) -> bool:
    """Whether neither side has closed it."""
    return all(side is WebSocketState.CONNECTED for side in (socket.application_state, socket.client_state))


async def turn_away(socket: WebSocket, error: Exception) -> None:
    """Say why it cannot stay, and close it."""
    told = foreseen(error, "a WebSocket")
    log_refusal(told)
    with suppress(WebSocketDisconnect):
        if is_open(socket):
            await socket.send_text(text("error", error_json(told)))
            await socket.close(close_code(told))


@asynccontextmanager
async def _closing(events: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Let a generator clean up at once when nobody reads it any more."""
    try:
        yield events
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()
