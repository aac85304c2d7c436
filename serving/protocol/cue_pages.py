"""What the protocol says of the cues of a session, those that have applied and those to come: in pages."""

from __future__ import annotations

from serving.errors import InvalidRequest, LimitReached, WrongState
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import write_applied, write_cue
from serving.protocol.paging import within_bytes
from serving.session.applied_log import AppliedLog
from serving.session.state_machine import Session

RECENT = 100
"""Applied cues that come with a session's state, and a page where no size is asked for."""

MOST_A_PAGE = 1000

NEXT = 500
"""Pending cues that come with a session's state, which is written anew for every change of its cues."""


def recent_cues(log: AppliedLog) -> list[pb.AppliedCue]:
    """The last cues that have applied, as far as a session's state has room for them."""
    newest_first = (write_applied(entry) for entry in log.tail.entries[: -RECENT - 1 : -1])
    return within_bytes(newest_first)[::-1]


def next_cues(logic: Session) -> list[pb.Cue]:
    """The first cues that are pending, as far as a session's state has room for them."""
    return within_bytes(write_cue(pending.cue) for pending in logic.pending[:NEXT])


def applied_page(logic: Session, token: str, size: int) -> pb.ListAppliedCuesResponse:
    """The page that `token` leads to. Raises InvalidRequest, and WrongState after a reset."""
    start = _place(logic, token, "ListAppliedCues")
    if start > len(logic.applied):
        raise InvalidRequest(f"page token {token!r} is behind the {len(logic.applied)} cues that have applied")
    entries = logic.applied.page(start, _size(size))
    page = pb.ListAppliedCuesResponse(applied=within_bytes(map(write_applied, entries)))
    end = start + len(page.applied)
    if end < len(logic.applied):
        page.next_page_token = f"{logic.take}.{end}"
    return page


def pending_page(logic: Session, token: str, size: int) -> pb.ListPendingCuesResponse:
    """The page that `token` leads to; raises the same. What changes between two pages moves nothing in others."""
    start = _place(logic, token, "ListPendingCues")
    left = [pending.cue for pending in logic.pending if pending.cue.frame >= start]
    page = pb.ListPendingCuesResponse(pending=within_bytes(map(write_cue, left[: _size(size)])))
    if len(page.pending) < len(left):
        page.next_page_token = f"{logic.take}.{page.pending[-1].frame + 1}"
    return page


def long_page(size: int) -> int:
    """How many requests more a page is than one of the usual length: it takes as much of a replica's time."""
    return min(max(size, 0), MOST_A_PAGE) // RECENT


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


def _size(asked: int) -> int:
    if not 0 <= asked <= MOST_A_PAGE:
        raise InvalidRequest(f"page_size is {asked}; it must be within 0..{MOST_A_PAGE}")
    return asked or RECENT


def _place(logic: Session, token: str, method: str) -> int:
    """Where a token leads to in the session's present take."""
    if not token:
        return 0
    take, _, start = token.partition(".")
    if not (_is_number(take) and _is_number(start)):
        raise InvalidRequest(f"the page token {token[:60]!r} is not one that {method} gave")
    if int(take) != logic.take:
        raise WrongState("the session has been reset since the page before; begin with the first page")
    return int(start)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
