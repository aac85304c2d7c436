from __future__ import annotations

import numpy as np
import pytest

from benchmarks.endless import Trend


def test_a_trend_finds_the_slope_per_thousand_blocks() -> None:
    trend = Trend.of(list(20 + 0.003 * np.arange(1000)))
    assert trend.slope_per_1000_blocks == pytest.approx(3)
    assert trend.late_median - trend.early_median == pytest.approx(0.003 * 700)


def test_slow_blocks_do_not_bend_the_line() -> None:
    ms = np.full(1000, 20.0)
    ms[900::10] = 90.0
    assert Trend.of(list(ms)).slope_per_1000_blocks == 0


def test_blocks_that_are_left_out_do_not_count_for_the_line() -> None:
    ms = np.full(600, 20.0)
    ms[400:] = 90.0
    assert Trend.of(list(ms), range(400, 600)).slope_per_1000_blocks == 0
