"""Errors of sessions as status codes and reasons, and back."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

from grpc import StatusCode

from serving.errors import (
    CommandIdReused,
    ControllerReplaced,
    FrameOutOfRange,
    InvalidRequest,
    LimitReached,
    MemoryFull,
    NotAllowed,
    NotOperator,
    OriginNotAllowed,
    ReplicaLost,
    RetryLater,
    ServingError,
    SessionError,
    SessionFailed,
    SessionLost,
    SessionMoved,
    SessionNotFound,
    SlotsFull,
    TimelineError,
    TooManyRequests,
    Unforeseen,
    WrongState,
)
from serving.pb.longtake.v1 import sessions_pb2 as pb

logger = logging.getLogger(__name__)

REASON_KEY = "longtake-reason"
"""The trailing metadata that carries the reason of a refusal."""

RETRY_KEY = "longtake-retry-after-ms"
"""The trailing metadata that says when to come back."""

SERVER_KEY = "longtake-server"
"""The trailing metadata that says where a session has gone; its address is the same where this is missing."""

FULL_RETRY_S = 10.0
"""When to come back to a server that is full, where nothing else is known: sessions end at any time."""

REFUSED = "request refused"
"""The log's line on a refused request."""

MOST_BYTES = 2000
"""Of an error's message."""

CODES: dict[type[ServingError], StatusCode] = {
    InvalidRequest: StatusCode.INVALID_ARGUMENT,
    TimelineError: StatusCode.INVALID_ARGUMENT,
    SessionNotFound: StatusCode.NOT_FOUND,
    WrongState: StatusCode.FAILED_PRECONDITION,
    FrameOutOfRange: StatusCode.OUT_OF_RANGE,
    SlotsFull: StatusCode.RESOURCE_EXHAUSTED,
    LimitReached: StatusCode.RESOURCE_EXHAUSTED,
    NotAllowed: StatusCode.UNAUTHENTICATED,
    NotOperator: StatusCode.PERMISSION_DENIED,
    OriginNotAllowed: StatusCode.PERMISSION_DENIED,
    ReplicaLost: StatusCode.UNAVAILABLE,
    SessionLost: StatusCode.DATA_LOSS,
    SessionFailed: StatusCode.ABORTED,
}

REASONS: dict[type[ServingError], str] = {
    InvalidRequest: "INVALID_REQUEST",
    TimelineError: "INVALID_TIMELINE",
    CommandIdReused: "COMMAND_ID_REUSED",
    SessionNotFound: "SESSION_NOT_FOUND",
    SessionLost: "SESSION_LOST",
    SessionFailed: "SESSION_FAILED",
    WrongState: "WRONG_STATE",
    ControllerReplaced: "CONTROLLER_REPLACED",
    FrameOutOfRange: "FRAME_OUT_OF_RANGE",
    SlotsFull: "SLOTS_FULL",
    MemoryFull: "MEMORY_FULL",
    LimitReached: "LIMIT_REACHED",
    TooManyRequests: "TOO_MANY_REQUESTS",
    NotAllowed: "NOT_ALLOWED",
    NotOperator: "NOT_OPERATOR",
    OriginNotAllowed: "ORIGIN_NOT_ALLOWED",
    ReplicaLost: "REPLICA_LOST",
    SessionMoved: "SESSION_MOVED",
}
"""The names of `ErrorReason`, without its prefix."""

_BY_CODE: dict[StatusCode, type[SessionError]] = {
    StatusCode.INVALID_ARGUMENT: InvalidRequest,
    StatusCode.NOT_FOUND: SessionNotFound,
    StatusCode.FAILED_PRECONDITION: WrongState,
    StatusCode.OUT_OF_RANGE: FrameOutOfRange,
    StatusCode.RESOURCE_EXHAUSTED: LimitReached,
    StatusCode.UNAUTHENTICATED: NotAllowed,
    StatusCode.PERMISSION_DENIED: OriginNotAllowed,
    StatusCode.DATA_LOSS: SessionLost,
    StatusCode.ABORTED: SessionFailed,
}

# The message of a timeline's error has its place in it: at a client it is an invalid request.
_BY_REASON: dict[str, type[SessionError]] = {
    reason: kind if issubclass(kind, SessionError) else InvalidRequest for kind, reason in REASONS.items()
}

_BY_NUMBER: dict[int, StatusCode] = {code.value[0]: code for code in StatusCode}


def code_of(error: ServingError) -> StatusCode:
    """The code that a caller is answered; INTERNAL for what no caller can mend."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), StatusCode.INTERNAL)


def reason_of(error: ServingError) -> str:
    """The reason that a caller is answered; UNSPECIFIED for what no caller can mend."""
    return next((REASONS[kind] for kind in type(error).__mro__ if kind in REASONS), "UNSPECIFIED")


def foreseen(error: Exception, doing: str) -> ServingError:
    """What a caller is told of an error: itself, or that it happened, where nobody foresaw it; that is logged."""
    if isinstance(error, ServingError):
        return error
    logger.error("an error that nobody foresaw", extra={"doing": doing}, exc_info=error)
    return unforeseen(doing)


def log_refusal(error: ServingError) -> None:
    """One line that a request was refused; of what nobody foresaw there is one already."""
    if not isinstance(error, Unforeseen):
        logger.info(REFUSED, extra=refusal_fields(error))


def refusal_fields(error: ServingError) -> dict[str, str]:
    """What the log's line on a refused request says beside `REFUSED`."""
    return {"reason": reason_of(error), "why": message_of(error)}


def unforeseen(doing: str) -> Unforeseen:
    """What is told in place of an error that nobody foresaw."""
    return Unforeseen(f"an error of the server in {doing}, which nobody foresaw; its logs say more")


def message_of(error: ServingError) -> str:
    """What is said of an error, as far as every client can take it.

    gRPC sends it in trailers, of which clients take 8 KiB, with up to three bytes for one of UTF-8.
    """
    words = str(error).encode(errors="backslashreplace")
    return words.decode() if len(words) <= MOST_BYTES else f"{words[:MOST_BYTES].decode(errors='ignore')}..."


def code_numbered(number: int) -> StatusCode:
    """A code by its number in messages; UNKNOWN for one that gRPC does not have."""
    return _BY_NUMBER.get(number, StatusCode.UNKNOWN)


def error_of(
    code: StatusCode, message: str, reason: str = "", retry_after_s: float | None = None, server: str = ""
) -> SessionError:
    """What a server's answer means, by its reason, or by its code where that is unknown or missing.

    A code that is not about the request is ReplicaLost: it may be made again.
    """
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, ReplicaLost)
    if issubclass(kind, RetryLater) and retry_after_s is not None:
        return kind(message, retry_after_s)
    return kind(message, server) if issubclass(kind, SessionMoved) else kind(message)


def retry_after_of(error: ServingError) -> float | None:
    """After how many seconds the same will be taken, or may be by a server that is full; None for other errors."""
    if not isinstance(error, RetryLater):
        return None
    return FULL_RETRY_S if error.retry_after_s is None else error.retry_after_s


def reason_in(metadata: Iterable[Any] | None) -> str:
    """The reason that an answer's trailing metadata names; empty if it names none."""
    return next((str(value) for key, value in metadata or () if key == REASON_KEY), "")


def server_in(metadata: Iterable[Any] | None) -> str:
    """Where an answer's trailing metadata says to ask; empty where it does not."""
    return next((str(value) for key, value in metadata or () if key == SERVER_KEY), "")


def said_beside(error: ServingError) -> str:
    """What an answer's trailing metadata says beside the reason: when to come back, or where."""
    if isinstance(error, SessionMoved):
        return error.server
    return "" if (seconds := retry_after_of(error)) is None else str(milliseconds(seconds))


def retry_after_in(metadata: Iterable[Any] | None) -> float | None:
    """After how many seconds an answer's trailing metadata says to come back; None where it does not."""
    found = next((str(value) for key, value in metadata or () if key == RETRY_KEY), "")
    return int(found) / 1000 if found.isdecimal() else None


def write_error(error: ServingError) -> pb.Error:
    """The `Error` message: code, reason, when to come back, and the server that a moved session went to."""
    written = pb.Error(
        code=code_of(error).value[0], message=message_of(error), reason=f"ERROR_REASON_{reason_of(error)}"
    )
    if (seconds := retry_after_of(error)) is not None:
        written.retry_delay.FromMilliseconds(milliseconds(seconds))
    if isinstance(error, SessionMoved):
        written.server = error.server
    return written


def milliseconds(seconds: float) -> int:
    """No less than `seconds`."""
    return math.ceil(1000 * seconds)


def reason_name(error: pb.Error) -> str:
    """The reason of an error out of a message; empty for one that this version does not know."""
    known = pb.ErrorReason.DESCRIPTOR.values_by_number.get(error.reason)
    return "" if known is None else known.name.removeprefix("ERROR_REASON_")


def read_error(error: pb.Error) -> SessionError:
    """What an error in an event means."""
    retry_after_s = error.retry_delay.ToMilliseconds() / 1000 if error.HasField("retry_delay") else None
    return error_of(code_numbered(error.code), error.message, reason_name(error), retry_after_s, error.server)
