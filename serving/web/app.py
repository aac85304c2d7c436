"""The web application: the page, its WebSocket, recordings and timelines that are brought along."""

from __future__ import annotations

import asyncio
import json
import math
from collections import defaultdict
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket, status
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from grpc import StatusCode
from starlette.exceptions import HTTPException
from typing_extensions import override

from serving.errors import InvalidRequest, ServingError
from serving.gateway.api import SessionAPI
from serving.origins import SAME_ORIGIN, Origins
from serving.protocol.status import code_of, log_refusal, retry_after_of, unforeseen
from serving.timeline.formats.reader import most_bytes, parse_timeline
from serving.web.json_format import error_json, server_json, timeline_json
from serving.web.origin_guard import OriginGuard
from serving.web.query import INPUTS, PROTOCOL, Address, one_of, read_query, read_token
from serving.web.recordings import recording_routes
from serving.web.segments import SegmentCache
from serving.web.timeline_file import pending_file, timeline_file
from serving.web.websocket import Conversation, SharedStates, turn_away

STATIC = Path(__file__).parent / "static"

FILES_AT_ONCE = 2
"""Timelines that are read at a time; others wait."""

BODIES_AT_ONCE, BODIES_OF_ONE = 16, 4
"""Timelines that are on their way or wait to be read, of all callers and of one; of more nothing is taken yet."""

BODY_S = 30.0
"""The longest that a timeline may be on its way."""

_STATUS = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.FAILED_PRECONDITION: 409,
    StatusCode.OUT_OF_RANGE: 416,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.UNAVAILABLE: 503,
}

_POLICY = (
    "default-src 'self'", "media-src 'self' blob:", "connect-src 'self' ws: wss:", "object-src 'none'",
    "base-uri 'none'", "form-action 'self'", "frame-ancestors 'none'",
)  # fmt: skip

_SECURITY = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Permissions-Policy": "camera=(self), display-capture=(self), microphone=(), geolocation=()",
}
"""Links to a session are secrets of sorts, and a prompt is shown as text wherever it came from."""


class Fresh(StaticFiles):
    """Files that browsers ask after each time: a new version of the server is a new version of the page."""

    @override
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """As it was, without being kept unasked."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def web_app(sessions: SessionAPI, origins: Origins = SAME_ORIGIN) -> FastAPI:
    """The application, for its own page and those of `origins`."""
    segments, states = SegmentCache(), SharedStates()
    app = FastAPI(title="Longtake", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(OriginGuard, origins=origins)
    app.add_middleware(CORSMiddleware, allow_origins=origins.allowed, allow_methods=["*"], allow_headers=["*"])
    app.mount("/static", Fresh(directory=STATIC))

    @app.exception_handler(ServingError)
    async def refuse(request: Request, error: ServingError) -> JSONResponse:
        log_refusal(error)
        seconds = retry_after_of(error)
        headers = {} if seconds is None else {"Retry-After": str(math.ceil(seconds))}
        return JSONResponse({"error": error_json(error)}, _STATUS.get(code_of(error), 500), headers)

    @app.exception_handler(HTTPException)
    async def turn_down(request: Request, error: HTTPException) -> JSONResponse:
        refused = InvalidRequest(f"{request.method} {request.url.path}: {error.detail}")
        log_refusal(refused)
        told = error_json(refused)
        if error.status_code == status.HTTP_404_NOT_FOUND:
            told["code"] = StatusCode.NOT_FOUND.name
        return JSONResponse({"error": told}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        # What nobody foresaw is logged by who runs the application.
        return JSONResponse({"error": error_json(unforeseen(request.url.path))}, 500)

    @app.get("/")
    async def page() -> FileResponse:
        return _page("index.html")

    @app.get("/bare")
    async def bare() -> FileResponse:
        return _page("bare.html")

    @app.websocket("/ws")
    async def converse(socket: WebSocket) -> None:
        await _converse(socket, sessions, segments, states)

    @app.get("/server.json")
    async def server(request: Request) -> JSONResponse:
        caller = sessions.authenticate(read_token(request.headers))
        return JSONResponse(server_json(await sessions.describe_server(caller)))

    @app.api_route("/recordings/{name}.mp4", methods=["GET", "HEAD"])
    async def recording(name: str, request: Request) -> FileResponse:
        path = sessions.recording_file(name, sessions.authenticate(read_token(request.headers)))
        kept = {"Cache-Control": "private, no-cache"}
        return FileResponse(path, media_type="video/mp4", filename=f"{name}.mp4", headers=kept)

    app.include_router(recording_routes(sessions))

    @app.get("/sessions/{session_id}/timeline.json")
    async def past(session_id: str, request: Request) -> StreamingResponse:
        pieces = timeline_file(sessions, session_id, sessions.authenticate(read_token(request.headers)))
        headers = {"Content-Disposition": 'attachment; filename="timeline.json"'}
        return StreamingResponse(await _begun(pieces), media_type="application/json", headers=headers)

    @app.get("/sessions/{session_id}/pending.json")
    async def future(session_id: str, request: Request) -> StreamingResponse:
        pieces = pending_file(sessions, session_id, sessions.authenticate(read_token(request.headers)))
        return StreamingResponse(await _begun(pieces), media_type="application/json")

    taking, reading = asyncio.Semaphore(BODIES_AT_ONCE), asyncio.Semaphore(FILES_AT_ONCE)
    taking_of_one = defaultdict[str, asyncio.Semaphore](partial(asyncio.Semaphore, BODIES_OF_ONE))

    @app.post("/timelines")
    async def timeline(request: Request) -> Response:
        caller = sessions.authenticate(read_token(request.headers))
        asked = read_query(request.query_params, ("name", "input"))
        name, restyles = asked.get("name", "timeline.yaml"), bool(one_of(asked, "input", INPUTS))
        async with taking_of_one[caller.name], taking:
            body = await _body(request, most_bytes(name))
            async with reading:
                read = await asyncio.to_thread(_read, body, name, restyles=restyles)
        return Response(read, media_type="application/json")

    return app


def _page(name: str) -> FileResponse:
    return FileResponse(STATIC / name, headers={"Cache-Control": "no-cache", **_SECURITY})


async def _converse(socket: WebSocket, sessions: SessionAPI, segments: SegmentCache, states: SharedStates) -> None:
    """Take a WebSocket in, and say why if it cannot stay: a browser hears of nothing that comes before that."""
    offered = socket.scope.get("subprotocols", [])
    await socket.accept(PROTOCOL if PROTOCOL in offered else None)
    try:
        caller = sessions.authenticate(read_token(socket.headers, offered))
        await Conversation(socket, sessions, caller, segments, states).run(Address.of(socket.query_params))
    except Exception as error:
        await turn_away(socket, error)


async def _begun(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same pieces, of which the first is there already: after it no status can be answered any more."""
    first = await anext(pieces, b"")

    async def all_of_them() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return all_of_them()


async def _body(request: Request, most: int) -> bytes:
    """What was sent, or one byte more than is read of it. Raises InvalidRequest for what does not come in time."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    break
    except TimeoutError:
        raise InvalidRequest(
            f"{len(body)} bytes of the file came in {BODY_S:g} s; send it over a faster connection"
        ) from None
    return bytes(body[: most + 1])


def _read(data: bytes, name: str, *, restyles: bool) -> bytes:
    """A timeline's file as the page takes it: in a thread, since it may take seconds."""
    return json.dumps(timeline_json(parse_timeline(data, name, restyles=restyles)), ensure_ascii=False).encode()
