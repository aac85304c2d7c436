"""A session's cues as files: its past, from which the same video is made again, and what is to come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from serving.auth import Caller
from serving.errors import TooManyRequests, WrongState
from serving.gateway.api import SessionAPI
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import read_cue
from serving.timeline.formats.document import Json
from serving.timeline.formats.native import VERSION, cue_fields
from serving.web.json_format import cue_json

T = TypeVar("T")

PAGE_CUES = 1000


async def timeline_file(sessions: SessionAPI, session_id: str, caller: Caller) -> AsyncIterator[bytes]:
    """JSON of Longtake's own format, a page of cues at a time, each at the frame at which it applied.

    Raises WrongState if none has, and if the session is reset before the end.
    """
    options = (await sessions.get(session_id, caller)).options
    head: dict[str, Json] = {
        "version": VERSION, "model": options.model, "seed": options.seed,
        "height": options.height, "width": options.width,
    }  # fmt: skip
    request = pb.ListAppliedCuesRequest(session_id=session_id, page_size=PAGE_CUES)
    before = json.dumps(head, ensure_ascii=False)[:-1] + ', "cues": [\n'
    while True:
        page = await _next_page(partial(sessions.list_applied, request, caller), begins=not request.page_token)
        if not page.applied and not request.page_token:
            raise WrongState("no prompt has been shown yet, and a timeline begins with one")
        yield await asyncio.to_thread(_applied, before, page)
        if not page.next_page_token:
            break
        request.page_token, before = page.next_page_token, ",\n"
    yield b"\n]}\n"


async def pending_file(sessions: SessionAPI, session_id: str, caller: Caller) -> AsyncIterator[bytes]:
    """JSON with the cues that have not applied yet, in the fields of `schedule_prompt`, a page at a time."""
    request = pb.ListPendingCuesRequest(session_id=session_id, page_size=PAGE_CUES)
    before = '{"cues": [\n'
    while True:
        page = await _next_page(partial(sessions.list_pending, request, caller), begins=not request.page_token)
        if page.pending:
            yield await asyncio.to_thread(_pending, before, page)
            before = ",\n"
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    yield b"\n]}\n" if before == ",\n" else b'{"cues": []}\n'


async def _next_page(ask: Callable[[], Awaitable[T]], *, begins: bool) -> T:
    """A page of a file that `begins` with it; others come once the caller may ask again."""
    while True:
        try:
            return await ask()
        except TooManyRequests as refused:
            if begins:
                raise
            await asyncio.sleep(refused.retry_after_s)


def _applied(before: str, page: pb.ListAppliedCuesResponse) -> bytes:
    return (before + ",\n".join(map(_cue, page.applied))).encode()


def _pending(before: str, page: pb.ListPendingCuesResponse) -> bytes:
    return (before + ",\n".join(json.dumps(cue_json(cue), ensure_ascii=False) for cue in page.pending)).encode()


def _cue(applied: pb.AppliedCue) -> str:
    return json.dumps(cue_fields(replace(read_cue(applied.cue), frame=applied.frame)), ensure_ascii=False)
