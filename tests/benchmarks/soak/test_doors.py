"""What a soak of the doors says of its waits."""

from __future__ import annotations

from benchmarks.soak.doors import waits_for_a_proxy


def test_a_killed_proxy_costs_the_longest_wait_that_it_fell_into() -> None:
    peace, beside, longest, later = (9.0, 1.5), (13.0, 3.0), (16.0, 6.5), (30.0, 14.0)
    assert waits_for_a_proxy([peace, beside, longest, later], [11.0]) == [6.5]


def test_a_proxy_that_nobody_waited_for_costs_nothing() -> None:
    assert waits_for_a_proxy([(9.0, 1.5)], [2.0]) == []
