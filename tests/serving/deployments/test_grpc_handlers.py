"""How a refusal leaves a proxy of Serve, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import grpc.aio
import pytest

from serving.deployments.grpc_handlers import answered, sent, tolerant
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.status import reason_in


def refused(details: str, method: str) -> tuple[str, str | None]:
    """The reason and the words that a client is told, if a replica answered `details`."""

    async def unary(request: Any, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        context.set_details(details)
        return b""

    async def stream(request: Any, context: Any) -> AsyncGenerator[bytes]:
        yield b"one"
        context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        context.set_details(details)

    async def run() -> tuple[str, str | None]:
        server = grpc.aio.server()
        handlers = {
            "unary": grpc.unary_unary_rpc_method_handler(answered(unary)),
            "stream": grpc.unary_stream_rpc_method_handler(sent(stream)),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                if method == "unary":
                    await channel.unary_unary("/test/unary", bytes, bytes)(b"")
                else:
                    async for _ in channel.unary_stream("/test/stream", bytes, bytes)(b""):
                        pass
                raise AssertionError("it was not refused")
            except grpc.aio.AioRpcError as error:
                metadata: Any = error.trailing_metadata()
                return reason_in(metadata), error.details()
            finally:
                await server.stop(None)

    return asyncio.run(run())


@pytest.mark.parametrize("method", ["unary", "stream"])
def test_the_reason_becomes_metadata_and_the_words_stay(method: str) -> None:
    assert refused("SLOTS_FULL: all 3: taken", method) == ("SLOTS_FULL", "all 3: taken")


@pytest.mark.parametrize("data", [b"\x0a\x05a\xed\xa0\x80b", b"\xff\xff\xff"], ids=["half a character", "noise"])
@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_stream"])
def test_bytes_that_are_no_message_are_refused_in_words(kind: str, data: bytes) -> None:
    async def echo(request: Any, context: Any) -> bytes:
        return b"read"

    async def stream(request: Any, context: Any) -> AsyncGenerator[bytes]:
        messages = [one async for one in request] if kind == "stream_stream" else [request]
        yield f"read {messages}".encode()

    async def ask() -> list[bytes]:
        server = grpc.aio.server()
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        handler = make(answered(echo) if kind == "unary_unary" else sent(stream), pb.WatchRequest.FromString)
        generic = grpc.method_handlers_generic_handler("test", {"ask": tolerant(handler)})
        server.add_generic_rpc_handlers((generic,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = getattr(channel, kind)("/test/ask")([data] if kind == "stream_stream" else data)
            try:
                return [await call] if kind == "unary_unary" else [answer async for answer in call]
            finally:
                await server.stop(None)

    if kind == "stream_stream":
        assert asyncio.run(ask()) == [f"read {[pb.WatchRequest()]}".encode()]
        return
    with pytest.raises(grpc.aio.AioRpcError, match="no message that can be read") as refused:
        asyncio.run(ask())
    metadata: Any = refused.value.trailing_metadata()
    assert (refused.value.code(), reason_in(metadata)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


@pytest.mark.parametrize("method", ["unary", "stream"])
def test_what_serve_says_itself_has_no_reason(method: str) -> None:
    assert refused("Request failed: it broke", method) == ("", "Request failed: it broke")
