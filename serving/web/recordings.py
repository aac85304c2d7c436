"""The recordings of a caller over HTTP: listed and deleted."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from serving.gateway.api import SessionAPI
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.paging import MAX_PAGE_SIZE
from serving.web.json_format import recording_json
from serving.web.query import read_query, read_token, whole


def recording_routes(sessions: SessionAPI) -> APIRouter:
    """`GET recordings`, a page at a time, and `DELETE recordings/NAME.mp4`."""
    router = APIRouter()

    @router.get("/recordings")
    async def listed(request: Request) -> JSONResponse:
        caller = sessions.authenticate(read_token(request.headers))
        asked = read_query(request.query_params, ("page_token", "page_size"))
        size = whole(asked, "page_size", MAX_PAGE_SIZE) or 0
        wanted = pb.ListRecordingsRequest(page_size=size, page_token=asked.get("page_token", ""))
        page = await sessions.list_recordings(wanted, caller)
        recordings = [recording_json(recording) for recording in page.recordings]
        return JSONResponse({"recordings": recordings, "next_page_token": page.next_page_token})

    @router.delete("/recordings/{name}.mp4")
    async def delete(name: str, request: Request) -> Response:
        await sessions.delete_recording(name, sessions.authenticate(read_token(request.headers)))
        return Response(status_code=204)

    return router
