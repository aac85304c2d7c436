"""Long lists in several answers."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from serving.errors import InvalidRequest
from serving.pb.longtake.v1 import sessions_pb2 as pb

PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

MOST_BYTES = 1 << 20
"""Of a list in an answer. Clients of gRPC take 4 MiB unless told otherwise, and a session has two lists."""

M = TypeVar("M", bound=Message)


def within_bytes(messages: Iterable[M], most_bytes: int = MOST_BYTES) -> list[M]:
    """The first of `messages`, up to so many bytes; one always."""
    found: list[M] = []
    for message in messages:
        most_bytes -= message.ByteSize()
        if found and most_bytes < 0:
            break
        found.append(message)
    return found


def page_of(sessions: Sequence[pb.Session], request: pb.ListSessionsRequest) -> pb.ListSessionsResponse:
    """What a request asks for of `sessions`. Raises InvalidRequest for a token that is none.

    A token says which session was the last: what is opened or ended between two pages moves nothing.
    """
    if request.page_size < 0:
        raise InvalidRequest(f"page_size is {request.page_size}; it must be at least 0")
    size = min(request.page_size or PAGE_SIZE, MAX_PAGE_SIZE)
    after = _place(request.page_token) if request.page_token else None
    ordered = sorted(sessions, key=_key)
    left = ordered if after is None else [session for session in ordered if _key(session) > after]
    page = within_bytes(left[:size])
    token = _token(page[-1]) if len(left) > len(page) else ""
    return pb.ListSessionsResponse(sessions=page, next_page_token=token)


def _key(session: pb.Session) -> tuple[int, str]:
    return session.create_time.ToNanoseconds(), session.id


def _token(session: pb.Session) -> str:
    nanoseconds, session_id = _key(session)
    return base64.urlsafe_b64encode(f"{nanoseconds} {session_id}".encode()).decode()


def _place(token: str) -> tuple[int, str]:
    try:
        nanoseconds, _, session_id = base64.urlsafe_b64decode(token).decode().partition(" ")
        return int(nanoseconds), session_id
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"the page token {token[:60]!r} is none; send the one of the page before") from None
