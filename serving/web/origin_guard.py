"""What a page from elsewhere asks for is refused before anything is done, and what names no host as well."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import InvalidRequest, OriginNotAllowed
from serving.origins import Origins
from serving.protocol.status import log_refusal
from serving.web.json_format import error_json

READING = ("GET", "HEAD", "OPTIONS")
"""What changes nothing; whether a page may read the answer the browser decides, by what CORS says."""


class OriginGuard:
    """Refuses WebSockets, and requests that do something, from pages that `origins` does not let call."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 400 or 403, or pass on."""
        if scope["type"] in ("http", "websocket"):
            try:
                self._check(HTTPConnection(scope).headers, scope.get("method", ""))
            except (InvalidRequest, OriginNotAllowed) as error:
                log_refusal(error)
                status = 400 if isinstance(error, InvalidRequest) else 403
                await JSONResponse({"error": error_json(error)}, status)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Mapping[str, str], method: str) -> None:
        host = headers.get("host", "")
        self._origins.require_host(host)
        if method not in READING:
            self._origins.require(headers.get("origin"), host)
