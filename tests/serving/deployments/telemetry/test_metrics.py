"""Names of metrics are as Prometheus has them; `tests/serving/live/test_operations.py` reads a server's."""

from __future__ import annotations

from typing import Any

import pytest
from ray.util import metrics

from serving.deployments.telemetry.metrics import DenoiserMetrics, ManagerMetrics

ALL = [*vars(DenoiserMetrics()).values(), *vars(ManagerMetrics()).values()]
BASE_UNITS = ("seconds", "bytes", "frames")
OTHER_UNITS = ("ms", "milliseconds", "minutes", "kb", "mb", "percent")


def name_of(metric: Any) -> str:
    return str(metric.info["name"])


@pytest.mark.parametrize("metric", ALL, ids=name_of)
def test_a_name_has_our_prefix_and_no_unit_but_a_base_unit(metric: Any) -> None:
    prefix, *words = name_of(metric).split("_")
    assert prefix == "longtake"
    assert not set(words) & set(OTHER_UNITS)
    assert not set(words[:-1]) & set(BASE_UNITS)


@pytest.mark.parametrize("metric", [m for m in ALL if isinstance(m, metrics.Histogram)], ids=name_of)
def test_histograms_are_of_seconds_and_tell_milliseconds_apart(metric: Any) -> None:
    assert name_of(metric).endswith("_seconds")
    assert (metric.boundaries[0], metric.boundaries[-1]) == (0.001, 5)
    assert metric.boundaries == sorted(metric.boundaries)


@pytest.mark.parametrize("metric", [m for m in ALL if isinstance(m, metrics.Counter)], ids=name_of)
def test_counters_leave_the_total_to_ray(metric: Any) -> None:
    assert not name_of(metric).endswith("_total")


def test_a_late_block_counts_by_how_much_and_one_that_nobody_waits_for_counts_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[float, dict[str, str]]] = []
    ours = DenoiserMetrics()
    monkeypatch.setattr(ours._slack, "observe", lambda value, tags: seen.append((value, tags)))
    for slack in (0.25, -0.5, None):
        ours.block(late=slack is not None and slack < 0, slack_s=slack)
    assert seen == [(0.25, {"late": "false"}), (0.5, {"late": "true"})]
