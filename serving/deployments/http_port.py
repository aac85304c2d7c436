"""The port of Serve's HTTP proxy: one server's alone, and free again as soon as that server has ended.

For a minute after a connection Linux gives its port to nobody, unless who had it and who asks have both set
SO_REUSEADDR. Serve sets it together with SO_REUSEPORT or not at all, and with that servers share their port.
"""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from ray.serve._private import http_util
from ray.serve._private.http_util import start_asgi_http_server
from ray.serve.config import HTTPOptions
from starlette.types import ASGIApp

POLL_S = 0.01


def hold_alone() -> None:
    """Have the proxy of this process, which has not begun to listen yet, hold its port in that way."""
    http_util.set_socket_reuse_port = _reuse_address
    http_util.start_asgi_http_server = start_http_server


async def start_http_server(
    app: ASGIApp,
    http_options: HTTPOptions,
    *,
    event_loop: asyncio.AbstractEventLoop,
    enable_so_reuseport: bool = False,
) -> tuple[asyncio.Task[None], uvicorn.Server]:
    """In place of Serve's function of that kind: returns once the port is listened on.

    Raises RuntimeError where another server listens there, and OSError where it has just begun to.
    """
    running, server = await start_asgi_http_server(
        app, http_options, event_loop=event_loop, enable_so_reuseport=True
    )
    while not server.started:
        if running.done():
            await running
        await asyncio.sleep(POLL_S)
    return running, server


def _reuse_address(sock: socket.socket) -> bool:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return True
