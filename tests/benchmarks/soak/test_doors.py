"""What a soak of the doors says of its waits, and of the memory of its server."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.soak.doors import (
    LOOK_EVERY_S,
    DoorsSoak,
    Growth,
    Memory,
    doors_violations,
    growth,
    missed_marks,
    waits_for_a_proxy,
)
from benchmarks.soak.viewer import Tally

SECONDS = 1800


def looks(proxy: list[float | None], ends_with: float = 0.0, **others: float) -> list[Memory]:
    """Of half an hour, in which the proxy takes such MiB in turn, and `ends_with` more at the end."""
    found = []
    for number in range(round(SECONDS / LOOK_EVERY_S)):
        mib, seconds = proxy[number % len(proxy)], number * LOOK_EVERY_S
        more = ends_with if seconds > SECONDS / 2 else 0.0
        found.append(Memory(seconds, others | ({} if mib is None else {"ProxyActor": mib + more})))
    return found


def wrong(memory: list[Memory], tally: Tally | None = None) -> list[str]:
    """What is said of a run in which one proxy was killed, in second 11."""
    soak = DoorsSoak(1, SECONDS, False, tally or Tally(), Counter(), [11.0], memory, 0)
    return [*doors_violations(soak), *missed_marks(soak)]


def test_a_killed_proxy_costs_the_longest_wait_that_it_fell_into() -> None:
    peace, beside, longest, later = (9.0, 1.5), (13.0, 3.0), (16.0, 6.5), (30.0, 14.0)
    assert waits_for_a_proxy([peace, beside, longest, later], [11.0]) == [6.5]


def test_a_proxy_that_nobody_waited_for_costs_nothing() -> None:
    assert waits_for_a_proxy([(9.0, 1.5)], [2.0]) == []


@pytest.mark.parametrize(
    ("wait", "said"), [(4.9, []), (5.1, ["waits of more than 5 s for a killed proxy: [5.1]"])]
)
def test_a_killed_proxy_may_cost_five_seconds(wait: float, said: list[str]) -> None:
    assert wrong(looks([100.0]), Tally(gaps=[(12.0, wait)])) == said


def test_a_proxy_that_is_dead_at_some_looks_is_compared_by_the_others() -> None:
    found = growth(looks([100.0, None, 30.0, 100.0, 100.0]))["ProxyActor"]
    assert (found.settled_mib, found.last_mib) == (100.0, 100.0)
    assert found.missed > 0
    assert wrong(looks([100.0, None, 100.0])) == []


def test_a_small_process_that_grows_beside_large_ones_has_grown() -> None:
    memory = looks([100.0], ends_with=20.0, gcs_server=700.0)
    grown = Growth(settled_mib=100.0, last_mib=120.0, missed=0)
    assert wrong(memory) == [f"processes that grew: {{'ProxyActor': {grown}}}"]


def test_a_process_that_is_not_there_at_the_end_is_named() -> None:
    memory = looks([100.0])
    gone = [look if look.seconds < SECONDS / 2 else look._replace(mib={"raylet": 90.0}) for look in memory]
    assert "processes that are gone: ['ProxyActor']" in wrong(gone)
