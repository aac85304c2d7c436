"""How a refusal leaves a proxy of Serve, over a real connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from serving.deployments.grpc_handlers import LOST_WORDS, answered, sent, tolerant
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.requests import APPLICATION
from serving.protocol.status import reason_in, retry_after_in, server_in


@asynccontextmanager
async def serving(**methods: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server that has these methods of a service `test`."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            yield channel
        finally:
            await server.stop(None)


def refused(details: str, method: str) -> tuple[str, str | None]:
    """The reason and the words that a client is told, if a replica answered `details`."""
    return told(details, method)[:2]


def told(details: str, method: str) -> tuple[str, str | None, float | None]:
    """The same, and after how many seconds to come back."""
    error = answer(details, method, grpc.StatusCode.RESOURCE_EXHAUSTED)
    metadata: Any = error.trailing_metadata()
    return reason_in(metadata), error.details(), retry_after_in(metadata)


def answer(details: str, method: str, code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    """What a client is told, if Serve answers so."""

    async def unary(request: Any, context: Any) -> bytes:
        context.set_code(code)
        context.set_details(details)
        return b""

    async def stream(request: Any, context: Any) -> AsyncGenerator[bytes]:
        yield b"one"
        context.set_code(code)
        context.set_details(details)

    async def run() -> grpc.aio.AioRpcError:
        async with serving(
            unary=grpc.unary_unary_rpc_method_handler(answered(unary)),
            stream=grpc.unary_stream_rpc_method_handler(sent(stream)),
        ) as channel:
            try:
                if method == "unary":
                    await channel.unary_unary("/test/unary", bytes, bytes)(b"")
                else:
                    async for _ in channel.unary_stream("/test/stream", bytes, bytes)(b""):
                        pass
                raise AssertionError("it was not refused")
            except grpc.aio.AioRpcError as error:
                return error

    return asyncio.run(run())


@pytest.mark.parametrize("method", ["unary", "stream"])
def test_the_reason_becomes_metadata_and_the_words_stay(method: str) -> None:
    assert refused("SLOTS_FULL: all 3: taken", method) == ("SLOTS_FULL", "all 3: taken")


@pytest.mark.parametrize("data", [b"\x0a\x05a\xed\xa0\x80b", b"\xff\xff\xff"], ids=["half a character", "noise"])
@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_stream"])
def test_bytes_that_are_no_message_are_refused_in_words_and_in_one_line_of_the_log(
    kind: str, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serving")

    async def echo(request: Any, context: Any) -> bytes:
        return b"read"

    async def stream(request: Any, context: Any) -> AsyncGenerator[bytes]:
        messages = [one async for one in request] if kind == "stream_stream" else [request]
        yield f"read {messages}".encode()

    async def ask() -> list[bytes]:
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        handler = make(answered(echo) if kind == "unary_unary" else sent(stream), pb.WatchRequest.FromString)
        async with serving(ask=tolerant(handler)) as channel:
            call = getattr(channel, kind)("/test/ask")([data] if kind == "stream_stream" else data)
            return [await call] if kind == "unary_unary" else [answer async for answer in call]

    if kind == "stream_stream":
        assert asyncio.run(ask()) == [f"read {[pb.WatchRequest()]}".encode()]
        return
    with pytest.raises(grpc.aio.AioRpcError, match="no message that can be read") as refused:
        asyncio.run(ask())
    metadata: Any = refused.value.trailing_metadata()
    assert (refused.value.code(), reason_in(metadata)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert caplog.messages.count("request refused") == 1


@pytest.mark.parametrize("method", ["unary", "stream"])
def test_when_to_come_back_becomes_metadata(method: str) -> None:
    assert told("TOO_MANY_REQUESTS 350: slow down", method) == ("TOO_MANY_REQUESTS", "slow down", 0.35)


LOST = "The actor 9376d54375430f0e1de253a001000000 is unavailable: Actor is unavailable.. The task may or may not"
FAULT = (
    "\x1b[36mray::ServeReplica:longtake:SessionManager.handle_request()\x1b[39m (pid=7)\nZeroDivisionError: 1 / 0"
)


@pytest.mark.parametrize("method", ["unary", "stream"])
def test_a_process_that_was_lost_is_unavailable_and_an_error_is_not_and_neither_is_in_words_of_serve(
    method: str,
) -> None:
    code = grpc.StatusCode.INTERNAL
    lost, fault = answer(LOST, method, code), answer(FAULT, method, code)
    assert (lost.code(), lost.details()) == (grpc.StatusCode.UNAVAILABLE, LOST_WORDS)
    assert reason_in(cast(Any, lost.trailing_metadata())) == "REPLICA_LOST"
    assert (fault.code(), fault.details()) == (
        code,
        "an error of the server, which nobody foresaw; its logs say more",
    )


@pytest.mark.parametrize("method", ["unary", "stream"])
def test_a_proxy_that_has_only_just_been_started_is_asked_again_and_has_ended_no_session(method: str) -> None:
    error = answer(not_found(APPLICATION), method, grpc.StatusCode.NOT_FOUND)
    metadata: Any = error.trailing_metadata()
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, LOST_WORDS)
    assert reason_in(metadata) == "REPLICA_LOST"
    other = answer(not_found("another"), method, grpc.StatusCode.NOT_FOUND)
    assert (other.code(), other.details()) == (grpc.StatusCode.NOT_FOUND, not_found("another"))


def not_found(application: str) -> str:
    """What Serve says of an application that a proxy does not know."""
    return (
        f"Application '{application}' not found. Ping "
        "/ray.serve.RayServeAPIService/ListApplications for available applications."
    )


@pytest.mark.parametrize("method", ["unary", "stream"])
def test_what_else_serve_says_has_no_reason(method: str) -> None:
    assert refused("Request failed: it broke", method) == ("", "Request failed: it broke")


def addressed(*metadata: tuple[str, str]) -> list[str]:
    """The applications that Serve reads in a request with `metadata`."""

    async def echo(request: Any, context: Any) -> bytes:
        return ",".join(value for key, value in context.invocation_metadata() if key == "application").encode()

    async def ask() -> bytes:
        async with serving(ask=grpc.unary_unary_rpc_method_handler(answered(echo))) as channel:
            return cast(bytes, await channel.unary_unary("/test/ask", bytes, bytes)(b"", metadata=metadata))

    return asyncio.run(ask()).decode().split(",")


def test_a_request_that_names_no_application_is_for_this_server_whichever_others_there_are() -> None:
    assert addressed() == ["longtake"]
    assert addressed(("application", "another")) == ["another"]


@pytest.mark.parametrize("method", ["unary", "stream"])
@pytest.mark.parametrize("server", ["new.example:9000", ""])
def test_where_a_session_has_gone_becomes_metadata(method: str, server: str) -> None:
    head = f"SESSION_MOVED {server}".strip()
    error = answer(f"{head}: ask there: now", method, grpc.StatusCode.UNAVAILABLE)
    metadata: Any = error.trailing_metadata()
    assert (reason_in(metadata), server_in(metadata)) == ("SESSION_MOVED", server)
    assert (error.details(), retry_after_in(metadata)) == ("ask there: now", None)


def test_a_request_is_let_go_of_whose_client_goes_while_that_is_being_done() -> None:
    ended: list[str] = []
    requests: list[asyncio.Task[None]] = []

    async def stream(request: Any, context: Any) -> AsyncGenerator[bytes]:
        yield b"one"
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")

    class Gone:
        """The context of a client that is gone: nothing can be sent, and the request is cancelled right after."""

        def peer(self) -> str:
            return "ipv4:127.0.0.1:50000"

        async def write(self, message: bytes) -> None:
            asyncio.get_running_loop().call_soon(requests[0].cancel)
            raise BrokenPipeError

    async def run() -> None:
        requests.append(asyncio.create_task(cast(Any, sent(stream))(b"", Gone())))
        await asyncio.wait(requests)
        await asyncio.sleep(0.1)
        assert ended == ["cancelled"]

    asyncio.run(run())


def test_who_asked_is_known_after_the_request_has_ended() -> None:
    """Serve asks for its access log; gRPC's own context would end the process: it reads what has been freed."""
    requests: list[Any] = []

    async def stream(request: Any, context: Any) -> AsyncGenerator[bytes]:
        requests.append(context)
        for _ in range(3):
            yield bytes(1000)

    async def run() -> None:
        async with serving(stream=grpc.unary_stream_rpc_method_handler(cast(Any, sent(stream)))) as channel:
            async for _ in channel.unary_stream("/test/stream", bytes, bytes)(b""):
                pass

    asyncio.run(run())
    assert [request.peer().split(":")[0] for request in requests] == ["ipv4"]
