from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engines.config.geometry import BlockLengths
from serving.session.pacing import Pace
from serving.session.state_machine import Session
from serving.timeline.cue import Blend
from serving.worker.blocks.scheduler import CAUTION, STARVED_S, Candidate, Scheduler, Urgency
from serving.worker.capacity.admission import Demand, shortage

NOON = Blend.of("a red balloon over the hills at noon")

candidates = st.lists(
    st.builds(
        Candidate, st.uuids().map(str), st.sampled_from("ab"), st.floats(0, 9), st.floats(0, 9),
        st.sampled_from(Urgency), st.floats(0, 2),
    ),
    max_size=9,
)  # fmt: skip


def keys(picked: list[Candidate]) -> list[str]:
    return [candidate.key for candidate in picked]


def unpaced(key: str, cost: float, since: float = 0.0) -> Candidate:
    return Candidate(key, 0, since, since, Urgency.UNPACED, cost)


def test_the_earliest_deadline_is_served_first() -> None:
    late, soon = Candidate("late", 0, 2.0, 0.0), Candidate("soon", 0, 1.0, 0.0)
    assert keys(Scheduler().pick([late, soon], 0.5)) == ["soon"]


def test_nothing_is_served_before_it_is_due() -> None:
    early, due = Candidate("early", 0, 1.0, 0.9), Candidate("due", 0, 2.0, 0.5)
    assert keys(Scheduler().pick([early, due], 0.5)) == ["due"]
    assert Scheduler().pick([early], 0.5) == []
    assert Scheduler().pick([], 0.5) == []


def test_equals_take_turns() -> None:
    scheduler = Scheduler()
    waiting = [Candidate(name, 0, 1.0, 0.0) for name in "abc"]
    turns = [keys(scheduler.pick(waiting, 1.0))[0] for _ in range(6)]
    assert turns == ["a", "b", "c", "a", "b", "c"]


def test_who_has_had_more_beside_its_blocks_waits_for_the_others() -> None:
    scheduler = Scheduler()
    waiting = [Candidate(name, 0, 1.0, 0.0, cost=0.1) for name in "ab"]
    assert keys(scheduler.pick(waiting, 1.0)) == ["a"]
    scheduler.charge("b", 0.2)
    assert keys(scheduler.pick(waiting, 1.0)) == ["a"]


def test_only_alike_sessions_share_a_batch() -> None:
    large, small = (96, 160), (32, 48)
    waiting = [
        Candidate("a", small, 1.0, 0.0), Candidate("b", large, 2.0, 0.0), Candidate("c", small, 3.0, 0.0),
        Candidate("d", small, 4.0, 0.0),
    ]  # fmt: skip
    scheduler = Scheduler(batch=2)
    assert keys(scheduler.pick(waiting, 0.0)) == ["a", "c"]
    assert keys(scheduler.pick(waiting[1:2] + waiting[3:], 0.0)) == ["b"]


def test_an_unpaced_session_shares_a_batch_where_that_makes_nobody_late() -> None:
    first, tight = Candidate("first", 0, 1.0, 0.0, cost=0.2), Candidate("tight", 1, 0.6, 0.3, cost=0.2)
    assert keys(Scheduler(batch=2).pick([first, unpaced("u", 0.2)], 0.0)) == ["first", "u"]
    assert keys(Scheduler(batch=2).pick([first, unpaced("u", 0.2), tight], 0.0)) == ["first"]


def test_an_unpaced_block_that_would_make_another_one_late_is_not_begun() -> None:
    soon = Candidate("soon", 0, 1.0, 0.5, cost=0.3)
    assert keys(Scheduler().pick([soon, unpaced("u", 0.4)], 0.0)) == ["u"]
    assert Scheduler().pick([soon, unpaced("u", 0.6)], 0.0) == []
    assert keys(Scheduler().pick([soon, unpaced("u", 0.6)], 0.5)) == ["soon"]


def test_what_the_device_still_has_to_do_counts() -> None:
    soon = Candidate("soon", 0, 1.0, 0.5, cost=0.3)
    assert Scheduler().pick([soon, unpaced("u", 0.4)], 0.0, free_at=0.4) == []


def test_a_session_that_waits_for_its_viewer_holds_nobody_up() -> None:
    gone = Candidate("gone", 0, 1.0, math.inf, cost=0.3)
    assert keys(Scheduler().pick([gone, unpaced("u", 0.4, 5.0)], 5.0)) == ["u"]


@pytest.mark.parametrize(("deadline", "first"), [(1.0, "begins"), (0.5, "soon")])
def test_a_session_that_begins_comes_first_where_that_makes_nobody_late(deadline: float, first: str) -> None:
    begins = Candidate("begins", 0, 0.0, 0.0, Urgency.WAITING, 0.3)
    soon = Candidate("soon", 0, deadline, 0.0, cost=0.3)
    assert keys(Scheduler().pick([soon, begins], 0.0)) == [first]


@given(candidates, st.floats(0, 9), st.integers(1, 4))
def test_whatever_waits_who_is_picked_is_due_and_a_paced_block_is_never_left_undone(
    waiting: list[Candidate], now: float, batch: int
) -> None:
    picked = Scheduler(batch).pick(waiting, now)
    due = [candidate for candidate in waiting if candidate.due <= now]
    assert len(picked) == len(set(keys(picked))) <= batch
    assert all(candidate in due and candidate.shape == picked[0].shape for candidate in picked)
    assert picked or all(candidate.urgency is not Urgency.CLOCKED for candidate in due)


def test_sessions_that_are_gone_are_forgotten() -> None:
    scheduler = Scheduler()
    for number in range(100):
        scheduler.pick([Candidate(str(number), 0, 0.0, 0.0)], 0.0)
    assert len(scheduler._used) == 1


def test_who_comes_late_takes_turns_with_those_that_are_there() -> None:
    scheduler, early = Scheduler(), unpaced("early", 0.2)
    for _ in range(100):
        scheduler.pick([early], 0.0)
    turns = [keys(scheduler.pick([early, unpaced("late", 0.2)], 0.0))[0] for _ in range(6)]
    assert Counter(turns) == {"early": 3, "late": 3}


STEP_S = 0.01
"""How often a device that does nothing looks again."""


@dataclass
class Viewed:
    """A session with a viewer, whose blocks take `cost` seconds each."""

    session: Session
    cost: float
    frames: int = 0
    late: int = 0
    busy: float = 0.0
    turns: list[float] = field(default_factory=list)


class Device:
    """Makes one block at a time for sessions with a viewer each. A clock that tests move."""

    def __init__(self, sessions: list[tuple[Pace, float]]) -> None:
        self.now = 0.0
        self.scheduler = Scheduler()
        self.viewed = {
            str(number): Viewed(Session(pace, BlockLengths(), 0.0), cost)
            for number, (pace, cost) in enumerate(sessions)
        }
        for viewed in self.viewed.values():
            viewed.session.schedule(NOON, 0, None, "", 0.0)
            viewed.session.start("", 0.0)
            viewed.session.viewer_came(0.0)

    @property
    def busy(self) -> float:
        return sum(viewed.busy for viewed in self.viewed.values())

    def run_for(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            waiting = [self.candidate(key, viewed) for key, viewed in self.viewed.items()]
            picked = self.scheduler.pick(waiting, self.now)
            for candidate in picked:
                self.make(self.viewed[candidate.key])
            self.now += 0.0 if picked else STEP_S

    def candidate(self, key: str, viewed: Viewed) -> Candidate:
        session = viewed.session
        due, expected = session.due(self.now), session.expected()
        if expected is not None:
            urgency, deadline = Urgency.CLOCKED, expected
        else:
            urgency = Urgency.WAITING if session.pace.fps else Urgency.UNPACED
            deadline = session.patience()
        return Candidate(key, key, deadline, math.inf if due is None else due, urgency, viewed.cost)

    def make(self, viewed: Viewed) -> None:
        session = viewed.session
        plan = session.begin_block(self.now)
        self.now += viewed.cost
        viewed.late += session.delivered(plan, self.now)
        viewed.frames = session.delivered_frames
        viewed.busy += viewed.cost
        viewed.turns.append(self.now)
        if session.pace.fps == 0:
            session.shown(session.delivered_frames - 1, self.now)


paces = st.builds(Pace, st.sampled_from([0, 4, 8, 16, 30]), st.integers(1, 4))
sessions = st.lists(st.tuples(paces, st.floats(0.02, 1.0)), min_size=2, max_size=6)


@settings(max_examples=25)
@given(sessions)
def test_no_session_starves_on_an_overloaded_device(several: list[tuple[Pace, float]]) -> None:
    device = Device(several)
    device.run_for(180.0)
    most = len(several) * (STARVED_S + 12.0) + sum(8 * cost for _, cost in several)
    for viewed in device.viewed.values():
        assert max(b - a for a, b in pairwise([0.0, *viewed.turns, device.now])) <= most


@given(sessions)
def test_nobody_who_was_let_in_is_late(several: list[tuple[Pace, float]]) -> None:
    periods = [12 / pace.fps if pace.fps else math.inf for pace, _ in several]
    demands = [
        Demand(CAUTION * cost, 0.0, period, pace.ahead * period)
        for (pace, cost), period in zip(several, periods, strict=True)
    ]
    nobody = Demand(0.0, 0.0)
    assume(all(shortage(demand, [nobody, *demands[:n]]) is None for n, demand in enumerate(demands)))
    device = Device(several)
    device.run_for(15.0)  # A first block has fewer frames than later ones, and all want their run-ahead at once.
    before = {key: viewed.late for key, viewed in device.viewed.items()}
    device.run_for(20.0)
    assert {key: viewed.late for key, viewed in device.viewed.items()} == before


def test_unpaced_sessions_take_what_a_paced_one_leaves_and_share_it_evenly() -> None:
    device = Device([(Pace(fps=16), 0.25), *[(Pace(fps=0), 0.25)] * 3])
    device.run_for(60.0)
    paced, *others = device.viewed.values()
    assert (paced.late, paced.frames >= 16 * 59) == (0, True)
    assert max(other.frames for other in others) - min(other.frames for other in others) <= 24
    assert device.busy > 59.0


def test_unpaced_sessions_are_not_forgotten_on_a_device_that_has_nothing_left() -> None:
    device = Device([(Pace(fps=16), 0.5), (Pace(fps=16), 0.5), (Pace(fps=0), 0.25), (Pace(fps=0), 0.25)])
    device.run_for(120.0)
    _, _, *unpaced = device.viewed.values()
    assert [4 <= len(viewed.turns) <= 8 for viewed in unpaced] == [True, True]


def test_an_unpaced_session_whose_blocks_never_fit_is_not_forgotten_over_one_whose_do() -> None:
    device = Device([(Pace(fps=8), 1.0), (Pace(fps=0), 1.0), (Pace(fps=0), 0.5)])
    device.run_for(120.0)
    assert len(device.viewed["1"].turns) >= 4


def test_unpaced_sessions_of_several_sizes_share_the_time_evenly() -> None:
    device = Device([(Pace(fps=16), 0.1), (Pace(fps=0), 0.1), (Pace(fps=0), 0.4)])
    device.run_for(60.0)
    _, small, large = device.viewed.values()
    assert small.busy == pytest.approx(large.busy, rel=0.05)


@pytest.mark.parametrize("costs", [(0.5, 0.5, 0.5, 0.5), (0.4, 0.9, 0.5)])
def test_the_device_is_shared_evenly_where_it_cannot_serve_all(costs: tuple[float, ...]) -> None:
    device = Device([(Pace(fps=16), cost) for cost in costs])
    device.run_for(120.0)
    busy = Counter({key: viewed.busy for key, viewed in device.viewed.items()})
    assert max(busy.values()) - min(busy.values()) <= 2 * max(costs)


def test_who_needs_less_than_an_equal_share_is_served_in_full() -> None:
    device = Device([(Pace(fps=16), 0.6), (Pace(fps=16), 0.6), (Pace(fps=4), 0.3)])
    device.run_for(120.0)
    _, _, slow = device.viewed.values()
    assert slow.frames >= 4 * 117
    assert sum(viewed.late for viewed in device.viewed.values()) > 0
