from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pytest

from serving.deployments.scaling.policy import (
    LEAST_LOOKED_AT_S,
    MOST_START_S,
    NOTICED_S,
    History,
    ReplicaReport,
    Stage,
    remembered,
    replicas_wanted,
)

SLOTS = 2
MOST = 100


def reports(*used: int, slots: int = SLOTS, start_s: float = 0.0) -> dict[str, ReplicaReport]:
    return {
        f"replica {number}": ReplicaReport(count, slots, count, start_s=start_s)
        for number, count in enumerate(used)
    }


def at(
    now: float, there: Mapping[str, ReplicaReport], running: int | None = None, target: int | None = None
) -> Stage:
    count = len(there) if running is None else running
    return Stage(now, there, count, count if target is None else target)


def looked(*stages: Stage) -> History:
    history = None
    for stage in stages:
        history = remembered(history, stage)
    assert history is not None
    return history


def wanted(*used: int, slots: int = SLOTS) -> int:
    return replicas_wanted(looked(at(0.0, reports(*used, slots=slots))), 1, MOST)


@pytest.mark.parametrize(
    ("used", "count"),
    [((0,), 1), ((1,), 1), ((2,), 2), ((2, 1), 2), ((2, 2), 3), ((2, 0, 0), 2), ((1, 1, 1), 2), ((0, 0, 0), 1)],
)
def test_one_slot_is_always_free(used: tuple[int, ...], count: int) -> None:
    assert wanted(*used) == count


@pytest.mark.parametrize("slots", [3, 7, 10])
def test_slots_that_are_full_to_the_last_but_one_need_no_more_replicas(slots: int) -> None:
    assert wanted(*[slots] * 5, slots - 1, slots=slots) == 6


def test_there_are_no_fewer_and_no_more_than_allowed() -> None:
    history = looked(at(0.0, reports(2, 2, 2)))
    assert [replicas_wanted(history, *bounds) for bounds in ((1, 3), (1, 8), (6, 8))] == [3, 4, 6]


def test_a_replica_that_has_time_for_fewer_sessions_than_it_has_slots_is_full_with_those() -> None:
    """Two large pictures take the time of a replica with four slots; the other one is empty."""
    there = {"large": ReplicaReport(2, 2), "empty": ReplicaReport(0, 4)}
    assert replicas_wanted(looked(at(0.0, there)), 1, MOST) == 2
    assert replicas_wanted(looked(at(0.0, {"large": ReplicaReport(2, 2)})), 1, MOST) == 2


def test_while_no_replica_has_reported_there_are_as_many_as_there_were() -> None:
    assert replicas_wanted(looked(at(0.0, {}, running=0, target=5)), 1, MOST) == 5


def test_a_replica_that_has_not_reported_yet_holds_nothing() -> None:
    assert replicas_wanted(looked(at(0.0, reports(2, 1), running=3)), 1, MOST) == 2


def arrived(count: int, seconds: float, start_s: float) -> History:
    before = {"a": ReplicaReport(0, SLOTS, 0, start_s=start_s)}
    after = {"a": ReplicaReport(SLOTS, SLOTS, count, start_s=start_s)}
    return looked(at(0.0, before), at(seconds, after))


def test_slots_are_kept_free_for_as_many_as_may_arrive_while_a_replica_starts() -> None:
    history = arrived(12, 1.0, start_s=7.0)
    assert history.per_second == pytest.approx(12 / LEAST_LOOKED_AT_S)
    assert history.spare == pytest.approx(2.0 + 2 * 2.0**0.5)
    assert replicas_wanted(history, 1, MOST) == 4


def test_the_longer_a_replica_takes_to_start_the_more_slots_are_kept_free() -> None:
    assert arrived(6, 1.0, start_s=5.0).spare < arrived(6, 1.0, start_s=9.0).spare


@pytest.mark.parametrize("start_s", [1.0, 20.0, 60.0, 300.0])
def test_of_a_lone_session_nothing_follows(start_s: float) -> None:
    assert arrived(1, 0.1, start_s).spare == 1.0


def test_arrivals_are_forgotten() -> None:
    there = reports(2, 2)
    history = remembered(arrived(20, 1.0, start_s=10.0), at(2.0, there))
    assert remembered(history, at(1000.0, there)).spare == 1.0


def test_sessions_that_are_refused_have_arrived_once_though_each_replica_refuses_them() -> None:
    full = {name: ReplicaReport(2, 2, 2, refused=0) for name in "abc"}
    refusing = {name: ReplicaReport(2, 2, 2, refused=9) for name in "abc"}
    assert looked(at(0.0, full), at(1.0, refusing)).per_second == pytest.approx(9 / LEAST_LOOKED_AT_S)


def test_what_replicas_counted_before_the_policy_began_has_not_arrived_now() -> None:
    old = {"old": ReplicaReport(1, 2, 5000)}
    history = looked(at(0.0, {}, running=1), at(1.0, old), at(2.0, old | {"late": ReplicaReport(1, 2, 7000)}))
    assert history.per_second == 0.0


def test_a_start_lasts_from_the_decision_until_the_replica_runs_however_quick_the_replica_itself_was() -> None:
    one, two = reports(2, start_s=4.0), reports(2, 0, start_s=4.0)
    history = looked(at(0.0, one), at(10.0, one, target=2), at(11.0, one, target=2), at(70.0, two), at(71.0, two))
    assert looked(at(0.0, one)).until_another_s == NOTICED_S + 4.0
    assert history.until_another_s == NOTICED_S + 60.0


def test_a_replica_that_waited_for_a_machine_says_nothing_of_the_next_one() -> None:
    one = reports(2)
    history = looked(at(0.0, one, target=2), at(50_000.0, reports(2, 0)))
    assert history.until_another_s == NOTICED_S + MOST_START_S


@dataclass
class Fleet:
    """Replicas by virtual time: they start in so many seconds, and sessions take the emptiest."""

    start_s: float
    most: int = 64
    there: dict[str, ReplicaReport] = field(default_factory=lambda: {"0": ReplicaReport(0, SLOTS)})
    starting: list[float] = field(default_factory=list)
    history: History | None = None
    refused: int = 0
    largest: int = 1

    def look(self, now: float) -> int:
        up = [ready for ready in self.starting if ready <= now]
        self.starting = [ready for ready in self.starting if ready > now]
        for _ in up:
            self.there[str(len(self.there))] = ReplicaReport(0, SLOTS, start_s=self.start_s)
        count = len(self.there)
        self.largest = max(self.largest, count)
        stage = Stage(now, dict(self.there), count, count + len(self.starting))
        self.history = remembered(self.history, stage)
        wants = replicas_wanted(self.history, 1, self.most)
        self.starting += [now + self.start_s] * (wants - stage.target)
        return wants

    def open(self) -> None:
        name, least = min(self.there.items(), key=lambda found: found[1].used)
        full = least.used >= least.slots
        self.refused += full
        for key in list(self.there) if full else [name]:
            seen = self.there[key]
            self.there[key] = ReplicaReport(
                seen.used + (not full), SLOTS, seen.admitted + (not full), seen.refused + full, self.start_s
            )

    def run(self, arrivals: Iterable[float], until: float) -> None:
        coming = sorted(arrivals)
        for second in range(int(until)):
            while coming and coming[0] <= second:
                coming.pop(0)
                self.open()
            self.look(float(second))


@pytest.mark.parametrize("start_s", [2.0, 10.0, 45.0, 180.0])
def test_nobody_is_refused_who_comes_no_sooner_than_a_replica_after_the_one_before(start_s: float) -> None:
    fleet = Fleet(start_s)
    between = start_s + NOTICED_S
    fleet.run([10 + between * number for number in range(20)], 10 + between * 21)
    assert fleet.refused == 0
    assert 10 < fleet.largest < 25


def test_a_rush_is_met_in_a_few_starts_and_not_by_a_replica_each() -> None:
    fleet, draw = Fleet(20.0), random.Random(7)
    fleet.run([60 + draw.expovariate(1.0) * 20 for _ in range(40)], 300)
    assert len(fleet.there) * SLOTS >= 40
