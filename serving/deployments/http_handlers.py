"""What runs in Serve's HTTP proxies, around every application.

Where the manager that was to answer is lost, Serve answers nothing, for which its HTTP server says "Internal
Server Error"; where there is none, or no application yet, it says so in a text of its own. Clients are told both
in the words, and with the status and the reason, that the application has for it.

An application hears from its WebSocket that the client has gone, and ends. What it sends until then Serve could
not send: it would end in the midst of that, and log an error.
"""

from __future__ import annotations

from contextlib import suppress

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.deployments.grpc_handlers import LOST_WORDS
from serving.errors import ReplicaLost
from serving.web.inflow import Inflow
from serving.web.json_format import error_json

RETRY_S = 1
"""After which to ask again: a manager is there again in seconds."""

SERVES_OWN = "/-/"
"""Where paths begin that Serve answers itself: whether it is healthy, and which routes it has."""

NOBODY_THERE = (404, 408, 503)
"""What Serve answers where no application, or no replica, does."""


def middlewares() -> list[Middleware]:
    """What Serve's proxies are to put around every application."""
    return [Middleware(Inflow), Middleware(Answered)]


class Answered:
    """Answers 503 in place of Serve, and of an application that ends without an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on but what Serve says of its own accord, which a WebSocket could not send."""
        kind = scope["type"]
        if kind not in ("http", "websocket") or scope["path"].startswith(SERVES_OWN):
            await self._app(scope, receive, send)
            return
        is_answered = False

        async def send_applications(message: Message) -> None:
            nonlocal is_answered
            if not message["type"].startswith(kind):
                return
            if kind == "websocket":
                is_answered = True
            elif message["type"] == "http.response.start":
                is_answered = not _is_of_serve(message)
            if is_answered:
                with suppress(OSError):
                    await send(message)

        await self._app(scope, receive, send_applications)
        if not is_answered:
            await _lost()(scope, receive, send)


def _is_of_serve(start: Message) -> bool:
    """Whether an answer that begins so is Serve's, which says no length, as applications of any kind do."""
    headers = Headers(raw=start["headers"])
    is_text = headers.get("content-type", "").startswith("text/plain") and "content-length" not in headers
    return is_text and start["status"] in NOBODY_THERE


def _lost() -> JSONResponse:
    return JSONResponse({"error": error_json(ReplicaLost(LOST_WORDS))}, 503, {"Retry-After": str(RETRY_S)})
