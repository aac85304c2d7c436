from __future__ import annotations

from serving.gateway.ownership.feed_retries import FeedRetries


def test_waits_double_until_the_copy_grows_again() -> None:
    retries = FeedRetries(0.5)
    assert [retries.wait_s(3.0) for _ in range(4)] == [0.5, 1.0, 2.0, 3.0]
    retries.grown()
    assert retries.wait_s(3.0) == 0.5


def test_an_error_is_news_until_it_comes_again() -> None:
    retries = FeedRetries(0.5)
    found = [retries.is_news(error) for error in (ValueError("a"), ValueError("a"), ValueError("b"))]
    assert found == [True, False, True]
    retries.grown()
    assert retries.is_news(ValueError("b"))


def test_the_full_state_is_asked_for_at_once_but_not_time_and_again() -> None:
    retries = FeedRetries(0.5)
    assert [retries.missed_wait_s(now, 2.0) for now in (10.0, 10.5, 12.5, 20.0)] == [0.0, 1.5, 1.5, 0.0]
