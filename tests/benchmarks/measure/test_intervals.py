from __future__ import annotations

import math

import pytest

from benchmarks.measure.intervals import Ratio, Share


def test_a_share_has_wilsons_interval() -> None:
    share = Share.of([True] * 8 + [False] * 2)
    assert share.value == 0.8
    assert share.interval == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_the_interval_of_a_sure_thing_stays_below_one() -> None:
    low, high = Share(20, 20).interval
    assert high == 1
    assert low == pytest.approx(0.8389, abs=1e-4)


def test_half_right_trials_count_for_their_half() -> None:
    assert Share.of([0.5, 0.5, 1.0, 0.0]) == Share(2, 4)


def test_no_trials_tell_nothing() -> None:
    assert math.isnan(Share(0, 0).value)
    assert Share(0, 0).interval == (0, 1)
    assert Share(0, 0).as_json()["share"] is None


@pytest.mark.parametrize("right", [-1, 3])
def test_more_than_all_or_less_than_none_cannot_be_right(right: int) -> None:
    with pytest.raises(ValueError, match=f"{right} of 2 trials"):
        Share(right, 2)


def test_a_ratio_of_double_and_half_is_one() -> None:
    ratio = Ratio.of([2.0, 0.5], [1.0, 1.0])
    assert ratio.value == pytest.approx(1)
    assert ratio.low < 1 < ratio.high


def test_one_pair_has_no_interval() -> None:
    assert Ratio.of([3.0], [2.0]).as_json() == {"ratio": 1.5, "low": None, "high": None}


def test_a_ratio_needs_a_pair() -> None:
    with pytest.raises(ValueError, match="no pair"):
        Ratio.of([], [])
