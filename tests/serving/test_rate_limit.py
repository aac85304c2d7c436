from __future__ import annotations

import pickle

import pytest

from serving.errors import TooManyRequests
from serving.rate_limit import REMEMBERED, RateLimit


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def taken(limit: RateLimit, times: int, caller: str = "anna") -> int:
    """How many of so many requests are let in."""
    for number in range(times):
        try:
            limit.take(caller, f"{caller} asks")
        except TooManyRequests:
            return number
    return times


def _may(limit: RateLimit, weight: int) -> bool:
    try:
        limit.take("anna", "anna asks", weight)
    except TooManyRequests:
        return False
    return True


def test_a_caller_may_ask_so_often_at_once_and_then_so_often_a_second() -> None:
    limit = RateLimit(10, 25, clock := Clock())
    assert taken(limit, 100) == 25
    clock.now += 1
    assert taken(limit, 100) == 10
    clock.now += 3600
    assert taken(limit, 100) == 25


def test_one_caller_takes_nothing_from_another() -> None:
    limit = RateLimit(10, 25, Clock())
    assert (taken(limit, 100), taken(limit, 100, "berta")) == (25, 25)


def test_what_weighs_more_may_be_done_less_often_and_always_once() -> None:
    limit = RateLimit(10, 25, clock := Clock())
    taken_at_once = sum(1 for _ in range(100) if _may(limit, weight=5))
    clock.now += 1
    assert (taken_at_once, sum(1 for _ in range(100) if _may(limit, weight=5))) == (5, 2)
    assert _may(RateLimit(10, 1, Clock()), weight=5)


def test_who_comes_back_when_told_to_is_let_in_and_who_comes_before_is_not() -> None:
    limit = RateLimit(10, 1, clock := Clock())
    limit.take("anna", "anna asks")
    with pytest.raises(
        TooManyRequests, match=r"anna asks more than 10 times a second; come back in 0\.100 s"
    ) as told:
        limit.take("anna", "anna asks")
    clock.now += told.value.retry_after_s / 2
    assert taken(limit, 1) == 0
    clock.now += told.value.retry_after_s / 2
    assert taken(limit, 1) == 1


def test_a_refusal_keeps_its_words_and_time_between_processes() -> None:
    again = pickle.loads(pickle.dumps(TooManyRequests("later", 0.25)))
    assert (str(again), again.retry_after_s) == ("later", 0.25)


def test_keys_that_have_been_quiet_are_forgotten() -> None:
    limit = RateLimit(10, 5, clock := Clock())
    for number in range(REMEMBERED):
        limit.take(str(number), "somebody asks")
    clock.now += 60
    limit.take("anna", "anna asks")
    assert len(limit._paid_until) == 1
