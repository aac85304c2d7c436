from __future__ import annotations

import pytest
from grpc import StatusCode

from serving import errors
from serving.errors import LimitReached, ReplicaLost, ServingError, SessionError, SlotsFull, TimelineError
from serving.protocol.status import CODES, code_numbered, code_of, error_of


def kinds(base: type[ServingError]) -> list[type[ServingError]]:
    return [base, *(kind for below in base.__subclasses__() for kind in kinds(below))]


@pytest.mark.parametrize("kind", [kind for kind in kinds(SessionError) if kind is not SessionError])
def test_every_error_about_a_session_has_a_code_of_its_own_meaning(kind: type[SessionError]) -> None:
    assert code_of(kind("no")) not in (StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.OK)


def test_a_timeline_that_cannot_be_used_is_an_invalid_argument() -> None:
    assert code_of(TimelineError("cues", "the list is empty")) is StatusCode.INVALID_ARGUMENT


def test_what_no_caller_can_mend_is_internal() -> None:
    assert code_of(errors.ModelError("the weights are not here")) is StatusCode.INTERNAL


@pytest.mark.parametrize("kind", [kind for kind in CODES if kind not in (TimelineError, SlotsFull)])
def test_an_error_comes_back_from_its_code_as_what_it_was(kind: type[ServingError]) -> None:
    again = error_of(code_of(kind("why")), "why")
    assert (type(again), str(again)) == (kind, "why")


def test_a_full_server_is_a_limit_to_its_client() -> None:
    assert type(error_of(code_of(SlotsFull("full")), "full")) is LimitReached


@pytest.mark.parametrize("code", [StatusCode.INTERNAL, StatusCode.CANCELLED, StatusCode.UNAVAILABLE])
def test_a_code_that_is_not_about_the_request_means_try_again(code: StatusCode) -> None:
    assert type(error_of(code, "gone")) is ReplicaLost


def test_codes_are_known_by_their_numbers() -> None:
    assert [code_numbered(code.value[0]) for code in StatusCode] == list(StatusCode)
    assert code_numbered(99) is StatusCode.UNKNOWN
