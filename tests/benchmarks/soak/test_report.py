"""What a soak calls wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.harness.holdings import Room
from benchmarks.soak.faults import BOTH, SINGLE, Fault
from benchmarks.soak.injector import Injected
from benchmarks.soak.report import gaps, violations
from benchmarks.soak.run import Soak
from benchmarks.soak.viewer import Tally


def injected(fault: Fault, at: float, at_risk: list[str] | None = None) -> Injected:
    return Injected(fault, [1], at, at, at_risk or [], [], whole_at=at + 5)


def soak(tally: Tally, *hits: Injected, rooms: tuple[Room, ...] = ()) -> Soak:
    return Soak(1, 8, tally, hits, (), (), rooms, 0, (), (), 60.0)


def lose_a_frame(tally: Tally) -> None:
    tally.lost += 1


def double_a_frame(tally: Tally) -> None:
    tally.doubled += 1


def lose_a_session(tally: Tally) -> None:
    tally.silently_lost.append("a: SessionNotFound")


def lose_another_session(tally: Tally) -> None:
    tally.told_lost.append("not at risk")


def lose_a_prompt(tally: Tally) -> None:
    tally.prompts_lost.append("a prompt")


@pytest.mark.parametrize(
    "go_wrong", [lose_a_frame, double_a_frame, lose_a_session, lose_another_session, lose_a_prompt]
)
def test_whatever_is_lost_is_a_violation(go_wrong: Callable[[Tally], None]) -> None:
    tally = Tally()
    assert violations(soak(tally)) == []
    go_wrong(tally)
    assert len(violations(soak(tally))) == 1


def test_a_session_whose_two_copies_were_hit_at_once_may_be_lost_if_its_client_is_told() -> None:
    assert violations(soak(Tally(told_lost=["a"]), injected(BOTH, 10.0, ["a"]))) == []


def test_a_decoder_session_that_is_left_is_a_violation() -> None:
    full, leaky = Room("Denoiser", "a", 2, 2), Room("VideoDecoder", "b", 3, 4)
    (wrong,) = violations(soak(Tally(), rooms=(full, leaky)))
    assert "VideoDecoder" in wrong


def test_the_wait_that_a_fault_costs_is_the_longest_of_any_session() -> None:
    tally = Tally(gaps=[(5.0, 1.5), (11.0, 2.5), (12.0, 4.0), (30.0, 1.5)])
    found = gaps(soak(tally, injected(SINGLE[0], 10.0)))
    assert found[SINGLE[0].kind]["max"] == 4.0
    assert found["in peace"]["max"] == 1.5
