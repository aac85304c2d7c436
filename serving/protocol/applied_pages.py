"""What the protocol says of the cues of a session that have applied, a page at a time."""

from __future__ import annotations

from serving.errors import InvalidRequest, LimitReached, WrongState
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import write_applied
from serving.session.applied_log import AppliedLog
from serving.session.state_machine import Session

RECENT = 100
"""Cues that come with a session's state, and a page where no size is asked for."""

MOST_A_PAGE = 1000
MOST_BYTES = 1 << 20
"""Of a page, but for its last cue."""


def recent_cues(log: AppliedLog) -> list[pb.AppliedCue]:
    """The last cues that have applied."""
    return [write_applied(entry) for entry in log.tail.entries[-RECENT:]]


def applied_page(logic: Session, token: str, size: int) -> pb.ListAppliedCuesResponse:
    """The page that `token` leads to. Raises InvalidRequest, and WrongState after a reset."""
    start = _start(logic, token)
    if not 0 <= size <= MOST_A_PAGE:
        raise InvalidRequest(f"page_size is {size}; it must be within 0..{MOST_A_PAGE}")
    page, nbytes = pb.ListAppliedCuesResponse(), 0
    for entry in logic.applied.page(start, size or RECENT):
        page.applied.append(write_applied(entry))
        nbytes += page.applied[-1].ByteSize()
        if nbytes > MOST_BYTES:
            break
    end = start + len(page.applied)
    if end < len(logic.applied):
        page.next_page_token = f"{logic.take}.{end}"
    return page


def whole_log(log: AppliedLog, most_bytes: int) -> list[pb.AppliedCue]:
    """All cues that have applied. Raises LimitReached where they would have more than `most_bytes`."""
    found: list[pb.AppliedCue] = []
    left = most_bytes
    for entry in log:
        found.append(write_applied(entry))
        left -= found[-1].ByteSize()
        if left < 0:
            raise LimitReached(f"{len(log)} cues have applied, too many for the {most_bytes} bytes of a snapshot")
    return found


def _start(logic: Session, token: str) -> int:
    if not token:
        return 0
    take, _, start = token.partition(".")
    if not (_is_number(take) and _is_number(start)):
        raise InvalidRequest(f"the page token {token[:60]!r} is not one that ListAppliedCues gave")
    if int(take) != logic.take:
        raise WrongState("the session has been reset since the page before; begin with the first page")
    if int(start) > len(logic.applied):
        raise InvalidRequest(f"page token {token!r} is behind the {len(logic.applied)} cues that have applied")
    return int(start)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
