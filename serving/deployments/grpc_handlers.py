"""What runs in Serve's proxies: the methods of `Sessions`, whose streams end there when their client goes.

Serve cancels a request whose client goes while it waits for the next message. If the client goes while a message
is being sent to it, nobody waits, and the request would be served on.

Of an error Serve passes on code and details, and no trailing metadata: the reason, and when or where to come back,
come in front of the details, and become metadata here. A request that names no application is for this server,
whichever others Serve has: it would not know where to. Bytes that are no message, such as texts with half
characters, gRPC would answer with UNKNOWN: they are refused here as any other request that cannot be used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from serving.background_tasks import wait_without_cancelling
from serving.deployments.telemetry.logging_config import join_serve_logs
from serving.errors import InvalidRequest, ReplicaLost, SessionMoved
from serving.pb.longtake.v1.sessions_pb2_grpc import add_SessionsServicer_to_server
from serving.protocol.requests import APPLICATION, APPLICATION_KEY
from serving.protocol.status import (
    REASON_KEY,
    REASONS,
    RETRY_KEY,
    SERVER_KEY,
    code_numbered,
    code_of,
    log_refusal,
    message_of,
    reason_of,
)

Unary = Callable[[Any, Any], Awaitable[bytes]]
Stream = Callable[[Any, Any], AsyncGenerator[bytes]]

LOST_WORDS = "the process of the server that was to answer is lost, or not there yet; ask again"

NO_APPLICATION = f"Application '{APPLICATION}' not found."
"""What a proxy says that has only just been started: it has not heard of any application yet."""

IN_A_TASK = "ray::"
"""What the text of an error has in it that was raised in a replica: where. That of a lost replica has no place."""


def add_sessions(servicer: Any, server: Any) -> None:
    """Add the service to the gRPC server of a proxy: one of Serve's `grpc_servicer_functions`."""
    # The manager logs what it refuses.
    join_serve_logs()
    _add(add_SessionsServicer_to_server, servicer, server)


def add_health(servicer: Any, server: Any) -> None:
    """The same of `grpc.health.v1`."""
    _add(add_HealthServicer_to_server, servicer, server)


def _add(add: Callable[[Any, Any], Any], servicer: Any, server: Any) -> None:
    handler_of = server.service_handler_factory
    server.service_handler_factory = partial(_handler, handler_of)
    add(servicer, _TolerantServer(server))
    server.service_handler_factory = handler_of


class _TolerantServer:
    """Has its handlers take bytes that are no message."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, generic: Sequence[Any]) -> None:
        """Add services that gRPC finds by asking each of them."""
        for service in generic:
            service._method_handlers = _tolerant_handlers(service._method_handlers)
        self._server.add_generic_rpc_handlers(generic)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add a service whose methods gRPC finds by their names."""
        self._server.add_registered_method_handlers(service, _tolerant_handlers(handlers))


def _tolerant_handlers(handlers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tolerant(handler) for name, handler in handlers.items()}


def tolerant(method: Any) -> Any:
    """A method whose handler is given the error where bytes are no message; on a stream, an empty message."""

    def read(data: bytes) -> object:
        try:
            return method.request_deserializer(data)
        except DecodeError as error:
            if method.request_streaming:
                return method.request_deserializer(b"")
            return InvalidRequest(f"the request is no message that can be read: {error}")

    return method._replace(request_deserializer=read)


def _handler(handler_of: Callable[..., Any], **method: Any) -> Any:
    handler = handler_of(**method)
    return sent(handler) if method["streaming_type"].name.endswith("_STREAM") else answered(handler)


def answered(unary: Unary) -> Unary:
    """The handler of gRPC that says why it refuses."""

    async def answer(request: Any, context: Any) -> bytes:
        await _require_message(request, context)
        try:
            return await unary(request, _Addressed(context))
        finally:
            _name_reason(context)

    return answer


def sent(stream: Stream) -> Callable[[Any, Any], Awaitable[None]]:
    """The handler of gRPC that sends the messages of `stream`, and lets go of it when it is let go of itself."""

    async def send(request: Any, context: Any) -> None:
        await _require_message(request, context)
        messages = stream(request, _Addressed(context))
        try:
            async for message in messages:
                await context.write(message)
        finally:
            # A message that cannot be sent any more is followed by the cancellation of this.
            await wait_without_cancelling(asyncio.create_task(_cancel(messages)))
            _name_reason(context)

    return send


async def _require_message(request: object, context: Any) -> None:
    if isinstance(request, InvalidRequest):
        log_refusal(request)
        await context.abort(code_of(request), message_of(request), ((REASON_KEY, reason_of(request)),))


class _Addressed:
    """The context of a request, to this server's application unless it says another one.

    Who asks is still known when the request has ended. gRPC's context would read what has been freed by then, and
    end the process: Serve asks once more for its access log.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._peer: str = context.peer()

    def peer(self) -> str:
        """The client's address, as gRPC writes it."""
        return self._peer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        """Keys and values of the request, the application's among them."""
        given = tuple(self._context.invocation_metadata() or ())
        is_addressed = any(key == APPLICATION_KEY for key, _ in given)
        return given if is_addressed else (*given, (APPLICATION_KEY, APPLICATION))


def _name_reason(context: Any) -> None:
    head, _, words = str(context.details() or "").partition(": ")
    reason, _, beside = head.partition(" ")
    if words and reason in REASONS.values():
        key = SERVER_KEY if reason == REASONS[SessionMoved] else RETRY_KEY
        said = [(REASON_KEY, reason), *([(key, beside)] if beside else [])]
        context.set_trailing_metadata([*context.trailing_metadata(), *said])
        context.set_details(words)
    elif _code(context) in (StatusCode.INTERNAL, StatusCode.UNAVAILABLE) or _knows_no_application(context):
        _say_in_own_words(context)


def _knows_no_application(context: Any) -> bool:
    return str(context.details()).startswith(NO_APPLICATION)


def _say_in_own_words(context: Any) -> None:
    """What Serve says itself: of a process that was lost, or of an error that nobody foresaw."""
    if IN_A_TASK in str(context.details()):
        context.set_details("an error of the server, which nobody foresaw; its logs say more")
        return
    context.set_code(StatusCode.UNAVAILABLE)
    context.set_details(LOST_WORDS)
    context.set_trailing_metadata([*context.trailing_metadata(), (REASON_KEY, REASONS[ReplicaLost])])


def _code(context: Any) -> StatusCode:
    code = context.code()
    return code if isinstance(code, StatusCode) else code_numbered(code)


async def _cancel(messages: AsyncGenerator[bytes]) -> None:
    """Wait for one more message, where any can come, and be cancelled in that."""
    waiting = asyncio.ensure_future(anext(messages, None))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
