from __future__ import annotations

import pytest

from serving.errors import LimitReached, WrongState
from serving.session.recording_mark import NO_RECORDING

FILM = NO_RECORDING.begun("film", "1")


def test_a_session_is_recorded_once_at_a_time() -> None:
    assert FILM.written == "film"
    with pytest.raises(WrongState, match="being recorded as film; stop that first"):
        FILM.begun("other", "2")
    assert FILM.stopped("").begun("other", "2").written == "other"


def test_a_request_that_is_made_again_changes_nothing() -> None:
    assert FILM.begun("other", "1") == FILM
    stopped = FILM.stopped("2")
    assert stopped.stopped("2") == stopped
    with pytest.raises(WrongState, match="is not being recorded"):
        stopped.stopped("3")


def test_requests_without_a_name_are_never_the_same() -> None:
    unnamed = NO_RECORDING.begun("film", "")
    with pytest.raises(WrongState):
        unnamed.begun("film", "")
    with pytest.raises(WrongState):
        unnamed.stopped("").stopped("")


def test_a_recording_that_has_failed_says_so_until_another_begins() -> None:
    failed = FILM.ended("film", "the disk is full")
    for _ in range(2):
        with pytest.raises(LimitReached, match="the disk is full"):
            failed.stopped("2")
    assert (failed.written, failed.begun("other", "3").written) == ("", "other")


def test_a_recording_that_has_ended_can_be_stopped_still() -> None:
    ended = FILM.ended("film", "")
    assert (ended.written, ended.stopped("2").name) == ("", "film")


def test_the_end_of_another_recording_is_none_of_this_one() -> None:
    assert FILM.ended("other", "the disk is full") == FILM
    assert FILM.stopped("2").ended("film", "") == FILM.stopped("2")
