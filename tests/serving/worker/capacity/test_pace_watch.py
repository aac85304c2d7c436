from __future__ import annotations

import pytest

from serving.worker.capacity.pace_watch import PaceWatch


def told(watch: PaceWatch, intervals: list[float], period: float = 0.75) -> list[float]:
    """What is told of blocks of 12 frames that come so many seconds after the one before."""
    now, news = 100.0, []
    watch.delivered(9, now, late=False)
    for interval in intervals:
        now += interval
        news.append(watch.delivered(12, now, late=interval > period))
    return [pace for pace in news if pace is not None]


def test_a_session_in_time_is_not_spoken_of() -> None:
    assert told(PaceWatch(16), [0.74, 0.75, 0.75, 0.76, 0.74] * 5) == []


def test_one_late_block_is_not_spoken_of() -> None:
    assert told(PaceWatch(16), [0.75, 0.75, 3.0, 0.75, 0.75, 0.75]) == []


def test_a_session_that_gets_slow_is_told_the_pace_that_is_held() -> None:
    watch = PaceWatch(16)
    assert told(watch, [1.0] * 12) == [pytest.approx(12.0)]
    assert watch.held_fps == pytest.approx(12.0)


def test_a_pace_that_changes_is_told_again_and_small_changes_are_not() -> None:
    assert told(PaceWatch(16), [*[1.0] * 6, *[1.05] * 6, *[1.5] * 8])[0] == pytest.approx(12.0)
    assert told(PaceWatch(16), [*[1.0] * 6, *[1.5] * 12])[-1] == pytest.approx(8.0, rel=0.16)
    assert len(told(PaceWatch(16), [*[1.0] * 6, *[1.05] * 20])) == 1


def test_it_is_told_when_the_pace_is_held_again() -> None:
    watch = PaceWatch(16)
    assert told(watch, [*[1.0] * 6, *[0.75] * 6])[-1] == 16.0
    assert watch.held_fps is None


def test_a_session_that_catches_up_is_told_once_it_is_late_no_more() -> None:
    watch = PaceWatch(16)
    assert told(watch, [1.0] * 8) == [pytest.approx(12.0)]
    assert [watch.delivered(12, 108.5 + 0.5 * block, late=True) for block in range(8)] == [None] * 8
    assert [watch.delivered(12, 113.0 + 0.75 * block, late=False) for block in range(4)] == [
        None,
        None,
        None,
        16.0,
    ]


def test_a_pause_is_not_slowness() -> None:
    watch = PaceWatch(16)
    assert told(watch, [0.75] * 5) == []
    watch.interrupted()
    assert told(watch, [0.75] * 5) == []


def test_nobody_is_called_slow_who_is_a_little_late_with_every_block() -> None:
    assert told(PaceWatch(16), [0.76] * 20, period=0.75) == []


def test_an_unpaced_session_is_never_late() -> None:
    assert told(PaceWatch(0), [30.0] * 9) == []
