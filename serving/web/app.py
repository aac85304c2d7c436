"""The web application: the page, its WebSocket, recordings and timelines that are brought along."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from grpc import StatusCode

from serving.errors import ServingError
from serving.gateway.api import SessionAPI
from serving.protocol.status import code_of
from serving.timeline.formats.reader import MAX_BYTES, parse_timeline
from serving.web.json_format import error_json, timeline_json
from serving.web.outbound import text
from serving.web.query import PROTOCOL, Address, read_token
from serving.web.segments import SegmentCache
from serving.web.timeline_file import timeline_file
from serving.web.websocket import Conversation, close_code

STATIC = Path(__file__).parent / "static"

_STATUS = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.NOT_FOUND: 404,
    StatusCode.FAILED_PRECONDITION: 409,
    StatusCode.OUT_OF_RANGE: 416,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.UNAVAILABLE: 503,
}

_SECURITY = {
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; connect-src 'self' ws: wss:",
    "Referrer-Policy": "no-referrer",
}
"""Links to a session are secrets of sorts, and a prompt is shown as text wherever it came from."""


class Fresh(StaticFiles):
    """Files that browsers ask after each time: a new version of the server is a new version of the page."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """As it was, without being kept unasked."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def web_app(sessions: SessionAPI) -> FastAPI:
    """The application. Other pages may call it too: what they know is a token, never a cookie."""
    segments = SegmentCache()
    app = FastAPI(title="Longtake", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
    app.mount("/static", Fresh(directory=STATIC))

    @app.exception_handler(ServingError)
    async def refuse(request: Request, error: ServingError) -> JSONResponse:
        return JSONResponse({"error": error_json(error)}, _STATUS.get(code_of(error), 500))

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache", **_SECURITY})

    @app.websocket("/ws")
    async def converse(socket: WebSocket) -> None:
        await _converse(socket, sessions, segments)

    @app.api_route("/recordings/{name}.mp4", methods=["GET", "HEAD"])
    async def recording(name: str, request: Request) -> FileResponse:
        path = sessions.recording_file(name, sessions.authenticate(read_token(request.headers)))
        kept = {"Cache-Control": "private, no-cache"}
        return FileResponse(path, media_type="video/mp4", filename=f"{name}.mp4", headers=kept)

    @app.get("/sessions/{session_id}/timeline.json")
    async def past(session_id: str, request: Request) -> StreamingResponse:
        pieces = timeline_file(sessions, session_id, sessions.authenticate(read_token(request.headers)))
        headers = {"Content-Disposition": 'attachment; filename="timeline.json"'}
        return StreamingResponse(await _begun(pieces), media_type="application/json", headers=headers)

    @app.post("/timelines")
    async def timeline(request: Request, name: str = "timeline.yaml") -> JSONResponse:
        sessions.authenticate(read_token(request.headers))
        return JSONResponse(timeline_json(parse_timeline(await _body(request), name)))

    return app


async def _converse(socket: WebSocket, sessions: SessionAPI, segments: SegmentCache) -> None:
    """Take a WebSocket in, and say why if it cannot stay: a browser hears of nothing that comes before that."""
    offered = socket.scope.get("subprotocols", [])
    await socket.accept(PROTOCOL if PROTOCOL in offered else None)
    try:
        caller = sessions.authenticate(read_token(socket.headers, offered))
        await Conversation(socket, sessions, caller, segments).run(Address.of(socket.query_params))
    except ServingError as error:
        await socket.send_text(text("error", error_json(error)))
        await socket.close(close_code(error))


async def _begun(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same pieces, of which the first is there already: after it no status can be answered any more."""
    first = await anext(pieces, b"")

    async def all_of_them() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return all_of_them()


async def _body(request: Request) -> bytes:
    """What was sent, or one byte more than is read of it."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BYTES:
            break
    return bytes(body[: MAX_BYTES + 1])
