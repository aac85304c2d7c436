"""Errors of sessions as status codes of gRPC, and back."""

from __future__ import annotations

from grpc import StatusCode

from serving.errors import (
    FrameOutOfRange,
    InvalidRequest,
    LimitReached,
    NotAllowed,
    ReplicaLost,
    ServingError,
    SessionError,
    SessionFailed,
    SessionLost,
    SessionNotFound,
    SlotsFull,
    TimelineError,
    WrongState,
)

CODES: dict[type[ServingError], StatusCode] = {
    InvalidRequest: StatusCode.INVALID_ARGUMENT,
    TimelineError: StatusCode.INVALID_ARGUMENT,
    SessionNotFound: StatusCode.NOT_FOUND,
    WrongState: StatusCode.FAILED_PRECONDITION,
    FrameOutOfRange: StatusCode.OUT_OF_RANGE,
    SlotsFull: StatusCode.RESOURCE_EXHAUSTED,
    LimitReached: StatusCode.RESOURCE_EXHAUSTED,
    NotAllowed: StatusCode.UNAUTHENTICATED,
    ReplicaLost: StatusCode.UNAVAILABLE,
    SessionLost: StatusCode.DATA_LOSS,
    SessionFailed: StatusCode.ABORTED,
}

_ERRORS: dict[StatusCode, type[SessionError]] = {
    StatusCode.INVALID_ARGUMENT: InvalidRequest,
    StatusCode.NOT_FOUND: SessionNotFound,
    StatusCode.FAILED_PRECONDITION: WrongState,
    StatusCode.OUT_OF_RANGE: FrameOutOfRange,
    StatusCode.RESOURCE_EXHAUSTED: LimitReached,
    StatusCode.UNAUTHENTICATED: NotAllowed,
    StatusCode.DATA_LOSS: SessionLost,
    StatusCode.ABORTED: SessionFailed,
}

_BY_NUMBER: dict[int, StatusCode] = {code.value[0]: code for code in StatusCode}


def code_of(error: ServingError) -> StatusCode:
    """The code that a caller is answered; INTERNAL for what no caller can mend."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), StatusCode.INTERNAL)


def code_numbered(number: int) -> StatusCode:
    """A code by its number in messages; UNKNOWN for one that gRPC does not have."""
    return _BY_NUMBER.get(number, StatusCode.UNKNOWN)


def error_of(code: StatusCode, message: str) -> SessionError:
    """What a server's answer means. A code that is not about the request is ReplicaLost: it may be made again."""
    return _ERRORS.get(code, ReplicaLost)(message)
