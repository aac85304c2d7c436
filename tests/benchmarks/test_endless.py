from __future__ import annotations

import numpy as np
import pytest

from benchmarks.endless import Trend


def test_a_trend_finds_the_slope_per_thousand_blocks() -> None:
    trend = Trend.of(list(20 + 0.003 * np.arange(1000)))
    assert trend.slope_per_1000_blocks == pytest.approx(3)
    assert trend.late_median - trend.early_median == pytest.approx(0.003 * 700)


def test_blocks_that_are_left_out_do_not_bend_the_line() -> None:
    ms = np.full(1000, 20.0)
    ms[500::100] = 90.0
    assert Trend.of(list(ms), range(500, 1000, 100)).slope_per_1000_blocks == pytest.approx(0, abs=1e-9)
