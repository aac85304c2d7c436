from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from ray.serve._private import default_impl, http_util
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RequestCancelledError
from starlette.responses import PlainTextResponse

from serving.deployments.server_process import free_ports
from serving.deployments.worker_setup import worker_setup
from tests.serving.deployments.telemetry.test_logging_config import logged


@pytest.fixture(autouse=True)
def serve_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the set-up puts something of ours in place of, put back after a test."""
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)
    for name in ("set_socket_reuse_port", "start_asgi_http_server"):
        monkeypatch.setattr(http_util, name, vars(http_util)[name])


@pytest.mark.parametrize("name", ["asyncio", "ray.serve"])
def test_a_process_of_the_cluster_logs_no_traceback_of_a_client_that_has_gone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "filters", [])
    worker_setup("127.0.0.1")()
    assert not logger.filter(logged(RequestCancelledError("a request")))
    assert logger.filter(logged(KeyError("latents")))


@asynccontextmanager
async def proxy(port: int) -> AsyncIterator[None]:
    """Listens on a port as Serve's HTTP proxy does where no two are to share one; it hangs up on its clients."""
    running, server = await http_util.start_asgi_http_server(
        PlainTextResponse("here", headers={"Connection": "close"}),
        HTTPOptions(host="127.0.0.1", port=port),
        event_loop=asyncio.get_running_loop(),
        enable_so_reuseport=False,
    )
    try:
        yield
    finally:
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await running


async def served_by(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.endswith(b"here")


def test_the_http_port_is_had_again_while_connections_of_the_proxy_before_are_in_time_wait() -> None:
    worker_setup("127.0.0.1")()

    async def one_after_another() -> None:
        for _ in range(2):
            async with proxy(port):
                assert await served_by(port)

    port = free_ports().http
    asyncio.run(one_after_another())


def test_two_proxies_do_not_share_the_http_port() -> None:
    worker_setup("127.0.0.1")()

    async def beside() -> None:
        async with proxy(port):
            with pytest.raises(RuntimeError, match="Failed to bind"):
                async with proxy(port):
                    pass

    port = free_ports().http
    asyncio.run(beside())
