"""Long lists in several answers."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from serving.errors import InvalidRequest
from serving.pb.longtake.v1 import sessions_pb2 as pb

PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

MOST_BYTES = 1 << 20
"""Of a list in an answer. Clients of gRPC take 4 MiB unless told otherwise, and a session has two lists."""

Place = tuple[int, str]
"""Where something is in a list, which is ordered by it: a time in Unix nanoseconds, and a name."""

M = TypeVar("M", bound=Message)
T = TypeVar("T")


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
    """What a request asks for of `sessions`. Raises InvalidRequest for a token that is none."""
    page, token = cut(sessions, _place_of, request.page_size, request.page_token, within_bytes)
    return pb.ListSessionsResponse(sessions=page, next_page_token=token)


def cut(
    items: Sequence[T],
    place_of: Callable[[T], Place],
    page_size: int,
    page_token: str,
    fitting: Callable[[Sequence[T]], list[T]] = list,
) -> tuple[list[T], str]:
    """A page of `items`, and the token of the next one. Raises InvalidRequest for a token that is none.

    Of a page only what is `fitting` is taken. A token says which item was the last: what comes or goes between two
    pages moves nothing.
    """
    if page_size < 0:
        raise InvalidRequest(f"page_size is {page_size}; it must be at least 0")
    size = min(page_size or PAGE_SIZE, MAX_PAGE_SIZE)
    after = _place(page_token) if page_token else None
    ordered = sorted(items, key=place_of)
    left = ordered if after is None else [item for item in ordered if place_of(item) > after]
    page = fitting(left[:size])
    token = _token(place_of(page[-1])) if len(left) > len(page) else ""
    return page, token


def _place_of(session: pb.Session) -> Place:
    return session.create_time.ToNanoseconds(), session.id


def _token(place: Place) -> str:
    return base64.urlsafe_b64encode(f"{place[0]} {place[1]}".encode()).decode()


def _place(token: str) -> Place:
    try:
        nanoseconds, _, name = base64.urlsafe_b64decode(token).decode().partition(" ")
        return int(nanoseconds), name
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"the page token {token[:60]!r} is none; send the one of the page before") from None
