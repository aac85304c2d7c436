"""The order of a soak's faults."""

from __future__ import annotations

from collections import Counter

from benchmarks.soak.faults import BOTH, SINGLE, plan


def test_the_same_seed_gives_the_same_faults() -> None:
    assert plan(100, 3) == plan(100, 3)
    assert plan(100, 3) != plan(100, 4)


def test_each_kind_of_fault_comes_about_as_often_as_any_other() -> None:
    counts = Counter(plan(100, 3))
    assert counts.keys() == {BOTH, *SINGLE}
    assert counts[BOTH] == 10
    assert max(counts[fault] for fault in SINGLE) - min(counts[fault] for fault in SINGLE) <= 1
