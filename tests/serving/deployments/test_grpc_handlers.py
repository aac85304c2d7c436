"""How a refusal leaves a proxy of Serve, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import grpc.aio
import pytest

from serving.deployments.grpc_handlers import answered, sent
from serving.protocol.status import reason_in, retry_after_in


def refused(details: str, method: str) -> tuple[str, str | None]:
    """The reason and the words that a client is told, if a replica answered `details`."""
    return told(details, method)[:2]


def told(details: str, method: str) -> tuple[str, str | None, float | None]:
    """The same, and after how many seconds to come back."""

    async def unary(request: Any, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        context.set_details(details)
        return b""

    async def stream(request: Any, context: Any) -> AsyncGenerator[bytes]:
        yield b"one"
        context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        context.set_details(details)

    async def run() -> tuple[str, str | None, float | None]:
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
                return reason_in(metadata), error.details(), retry_after_in(metadata)
            finally:
                await server.stop(None)

    return asyncio.run(run())


@pytest.mark.parametrize("method", ["unary", "stream"])
def test_the_reason_becomes_metadata_and_the_words_stay(method: str) -> None:
    assert refused("SLOTS_FULL: all 3: taken", method) == ("SLOTS_FULL", "all 3: taken")


@pytest.mark.parametrize("method", ["unary", "stream"])
def test_when_to_come_back_becomes_metadata(method: str) -> None:
    assert told("TOO_MANY_REQUESTS 350: slow down", method) == ("TOO_MANY_REQUESTS", "slow down", 0.35)


@pytest.mark.parametrize("method", ["unary", "stream"])
def test_what_serve_says_itself_has_no_reason(method: str) -> None:
    assert refused("Request failed: it broke", method) == ("", "Request failed: it broke")
