from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.paging import MAX_PAGE_SIZE, page_of


def session(created: int, name: str) -> pb.Session:
    made = pb.Session(id=name)
    made.create_time.FromNanoseconds(created)
    return made


def ids(answer: pb.ListSessionsResponse) -> list[str]:
    return [found.id for found in answer.sessions]


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(1, 7))
def test_the_pages_together_are_the_list_the_oldest_first(created: list[int], size: int) -> None:
    sessions = [session(at, f"s{number:02}") for number, at in enumerate(created)]
    found, token = [], ""
    while True:
        answer = page_of(sessions[::-1], pb.ListSessionsRequest(page_size=size, page_token=token))
        assert len(answer.sessions) <= size
        found += ids(answer)
        if not (token := answer.next_page_token):
            break
    assert found == [one.id for one in sorted(sessions, key=lambda one: (one.create_time.nanos, one.id))]


def test_a_page_fits_a_client_that_was_told_nothing_however_long_the_prompts_are() -> None:
    sessions = [session(number, f"s{number}") for number in range(30)]
    for one in sessions:
        one.prompt = "🎈" * 160_000
    found, token = [], ""
    while True:
        answer = page_of(sessions, pb.ListSessionsRequest(page_size=1000, page_token=token))
        assert answer.ByteSize() < 4 << 20
        found += ids(answer)
        if not (token := answer.next_page_token):
            break
    assert found == [one.id for one in sessions]


def test_a_session_that_ends_between_two_pages_moves_nothing() -> None:
    sessions = [session(number, f"s{number}") for number in range(4)]
    first = page_of(sessions, pb.ListSessionsRequest(page_size=2))
    del sessions[1]
    again = pb.ListSessionsRequest(page_size=2, page_token=first.next_page_token)
    assert ids(page_of(sessions, again)) == ["s2", "s3"]


def test_no_page_is_longer_than_the_longest() -> None:
    sessions = [session(number, f"s{number}") for number in range(MAX_PAGE_SIZE + 1)]
    assert len(page_of(sessions, pb.ListSessionsRequest(page_size=1 << 30)).sessions) == MAX_PAGE_SIZE
    assert page_of(sessions, pb.ListSessionsRequest()).next_page_token


@pytest.mark.parametrize("token", ["?", "abc", "bm9uZSB4"], ids=["no text", "no base64", "no number"])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest, match="page token"):
        page_of([], pb.ListSessionsRequest(page_token=token))
