from __future__ import annotations

import pytest
from grpc import StatusCode

from serving import errors
from serving.errors import (
    InvalidRequest,
    LimitReached,
    MemoryFull,
    NoLease,
    NotOperator,
    RegisterUnavailable,
    ReplicaDied,
    ReplicaLost,
    ServingError,
    SessionError,
    SessionOnItsWay,
    SlotsFull,
    TimelineError,
    TooManyRequests,
    WrongState,
)
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.status import (
    CODES,
    FULL_RETRY_S,
    REASON_KEY,
    REASONS,
    code_numbered,
    code_of,
    error_of,
    message_of,
    read_error,
    reason_in,
    reason_of,
    retry_after_of,
    write_error,
)

WITHIN = (ReplicaDied, NoLease, RegisterUnavailable, SessionOnItsWay)
"""Known within the server only."""


def kinds(base: type[ServingError]) -> list[type[ServingError]]:
    return [base, *(kind for below in base.__subclasses__() for kind in kinds(below))]


@pytest.mark.parametrize("kind", [kind for kind in kinds(SessionError) if kind is not SessionError])
def test_every_error_about_a_session_has_a_code_of_its_own_meaning(kind: type[SessionError]) -> None:
    assert code_of(kind("no")) not in (StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.OK)


def test_a_timeline_that_cannot_be_used_is_an_invalid_argument() -> None:
    assert code_of(TimelineError("cues", "the list is empty")) is StatusCode.INVALID_ARGUMENT


def test_what_is_said_of_a_long_value_fits_into_trailers_and_into_utf_8() -> None:
    assert message_of(WrongState("it is paused")) == "it is paused"
    assert len(message_of(InvalidRequest("🎈" * 9_000)).encode()) <= 2_003
    assert message_of(InvalidRequest("a \ud800 lake")) == "a \\ud800 lake"


def test_what_no_caller_can_mend_is_internal() -> None:
    assert code_of(errors.ModelError("the weights are not here")) is StatusCode.INTERNAL


@pytest.mark.parametrize("kind", [kind for kind in CODES if kind not in (TimelineError, SlotsFull, NotOperator)])
def test_an_error_comes_back_from_its_code_as_what_it_was(kind: type[ServingError]) -> None:
    again = error_of(code_of(kind("why")), "why")
    assert (type(again), str(again)) == (kind, "why")


@pytest.mark.parametrize("kind", WITHIN)
def test_whatever_loses_a_replica_is_one_thing_to_a_client(kind: type[SessionError]) -> None:
    assert type(error_of(code_of(kind("why")), "why", reason_of(kind("why")))) is ReplicaLost


def test_without_a_reason_a_full_server_is_a_limit_to_its_client() -> None:
    assert type(error_of(code_of(SlotsFull("full")), "full")) is LimitReached


@pytest.mark.parametrize("kind", [kind for kind in kinds(SessionError) if kind not in (SessionError, *WITHIN)])
def test_an_error_comes_back_from_its_reason_as_exactly_what_it_was(kind: type[SessionError]) -> None:
    again = error_of(code_of(kind("why")), "why", reason_of(kind("why")))
    assert (type(again), str(again)) == (kind, "why")
    assert type(read_error(write_error(kind("why")))) is kind


def test_reasons_are_those_of_the_protocol() -> None:
    named = {name.removeprefix("ERROR_REASON_") for name in pb.ErrorReason.DESCRIPTOR.values_by_name}
    assert named - {"UNSPECIFIED"} == set(REASONS.values())


def test_a_reason_of_a_later_version_leaves_the_code() -> None:
    later = pb.Error(code=StatusCode.NOT_FOUND.value[0], message="gone")
    later.reason = 999  # type: ignore[assignment]
    assert type(read_error(later)) is errors.SessionNotFound


def test_a_reason_is_found_in_the_metadata_behind_an_answer() -> None:
    assert reason_in([("request_id", "7"), (REASON_KEY, "SLOTS_FULL")]) == "SLOTS_FULL"
    assert reason_in(None) == ""


@pytest.mark.parametrize("code", [StatusCode.INTERNAL, StatusCode.CANCELLED, StatusCode.UNAVAILABLE])
def test_a_code_that_is_not_about_the_request_means_try_again(code: StatusCode) -> None:
    assert type(error_of(code, "gone")) is ReplicaLost


def test_codes_are_known_by_their_numbers() -> None:
    assert [code_numbered(code.value[0]) for code in StatusCode] == list(StatusCode)
    assert code_numbered(99) is StatusCode.UNKNOWN


@pytest.mark.parametrize(("known", "told"), [(None, FULL_RETRY_S), (42.0, 42.0)])
@pytest.mark.parametrize("kind", [SlotsFull, MemoryFull])
def test_whom_a_full_server_refuses_is_told_when_to_come_back(
    kind: type[SlotsFull], known: float | None, told: float
) -> None:
    error = kind("full", known)
    assert retry_after_of(error) == told
    for again in (
        read_error(write_error(error)),
        error_of(code_of(error), "full", reason_of(error), retry_after_of(error)),
    ):
        assert isinstance(again, kind)
        assert (str(again), again.retry_after_s) == ("full", told)


def test_when_to_come_back_survives_a_message() -> None:
    again = read_error(write_error(TooManyRequests("slow down", 0.2501)))
    assert isinstance(again, TooManyRequests)
    assert (str(again), again.retry_after_s) == ("slow down", 0.251)
