from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engines.config.geometry import BlockLengths
from serving.session.pacing import Pace
from serving.session.state_machine import Session
from serving.timeline.cue import Blend
from serving.worker.scheduler import REMEMBERED, Candidate, Scheduler

NOON = Blend.of("a red balloon over the hills at noon")

candidates = st.lists(
    st.builds(Candidate, st.uuids().map(str), st.sampled_from("ab"), st.floats(0, 9), st.floats(0, 9)), max_size=9
)


def keys(picked: list[Candidate]) -> list[str]:
    return [candidate.key for candidate in picked]


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


def test_only_alike_sessions_share_a_batch() -> None:
    large, small = (96, 160), (32, 48)
    waiting = [
        Candidate("a", small, 1.0, 0.0), Candidate("b", large, 2.0, 0.0), Candidate("c", small, 3.0, 0.0),
        Candidate("d", small, 4.0, 0.0),
    ]  # fmt: skip
    scheduler = Scheduler(batch=2)
    assert keys(scheduler.pick(waiting, 0.0)) == ["a", "c"]
    assert keys(scheduler.pick(waiting[1:2] + waiting[3:], 0.0)) == ["b"]


@given(candidates, st.floats(0, 9), st.integers(1, 4))
def test_whatever_waits_the_first_picked_has_the_earliest_deadline_of_those_due(
    waiting: list[Candidate], now: float, batch: int
) -> None:
    picked = Scheduler(batch).pick(waiting, now)
    due = [candidate for candidate in waiting if candidate.due <= now]
    assert bool(picked) == bool(due)
    assert len(picked) <= batch
    assert all(candidate in due and candidate.shape == picked[0].shape for candidate in picked)
    assert not picked or picked[0].deadline == min(candidate.deadline for candidate in due)


def test_sessions_that_are_gone_are_forgotten() -> None:
    scheduler = Scheduler()
    for number in range(REMEMBERED + 100):
        scheduler.pick([Candidate(str(number), 0, 0.0, 0.0)], 0.0)
    assert len(scheduler._served) == REMEMBERED


class Device:
    """Makes one block at a time, each in `cost_s`, for sessions with a viewer each. A clock that tests move."""

    def __init__(self, paces: list[Pace], cost_s: float) -> None:
        self.now, self.cost_s = 0.0, cost_s
        self.scheduler = Scheduler()
        self.sessions = {str(number): Session(pace, BlockLengths(), 0.0) for number, pace in enumerate(paces)}
        self.served: list[str] = []
        self.late: Counter[str] = Counter()
        for session in self.sessions.values():
            session.schedule(NOON, 0, None, "", 0.0)
            session.start("", 0.0)
            session.viewer_came(0.0)

    def run_for(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            dues = {key: session.due(self.now) for key, session in self.sessions.items()}
            waiting = [
                Candidate(key, 0, self.sessions[key].deadline(self.now), due)
                for key, due in dues.items()
                if due is not None
            ]
            picked = self.scheduler.pick(waiting, self.now)
            self.now += self.cost_s if picked else 0.01
            for candidate in picked:
                session = self.sessions[candidate.key]
                self.late[candidate.key] += session.delivered(
                    session.begin_block(self.now - self.cost_s), self.now
                )
                self.served.append(candidate.key)
                if session.pace.fps == 0:
                    session.shown(session.delivered_frames - 1, self.now)


paces = st.lists(st.builds(Pace, st.sampled_from([0, 8, 16, 30]), st.integers(1, 4)), min_size=2, max_size=6)


@given(paces, st.floats(0.2, 1.0))
def test_no_session_starves_on_an_overloaded_device(paces: list[Pace], cost_s: float) -> None:
    device = Device(paces, cost_s)
    device.run_for(60 * cost_s)
    for key in device.sessions:
        turns = [turn for turn, served in enumerate([key, *device.served, key]) if served == key]
        assert max(b - a for a, b in pairwise(turns)) <= 8 * len(paces)


def test_an_unpaced_session_takes_what_paced_ones_leave_and_makes_none_late() -> None:
    device = Device([Pace(fps=16), Pace(fps=16), Pace(fps=0)], cost_s=0.15)
    device.run_for(30.0)
    turns = Counter(device.served)
    assert device.late["0"] + device.late["1"] == 0
    assert turns["2"] > turns["0"] > 38


def test_the_device_is_shared_evenly_where_it_cannot_serve_all() -> None:
    device = Device([Pace(fps=16)] * 4, cost_s=0.5)
    device.run_for(60.0)
    turns = Counter(device.served)
    assert max(turns.values()) - min(turns.values()) <= 2
