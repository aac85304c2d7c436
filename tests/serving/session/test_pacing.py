from __future__ import annotations

import pytest

from engines.config.geometry import BlockLengths
from serving.errors import InvalidRequest
from serving.media.playout_clock import Clock
from serving.session.pacing import Pace, Position
from serving.session.state_machine import Session
from serving.timeline.cue import Blend


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fps": -1}, "fps is -1"),
        ({"fps": 61}, "fps is 61"),
        ({"ahead": 0}, "ahead is 0"),
        ({"ahead": 65}, "ahead is 65"),
        ({"lease_s": 0.5}, "lease is 0.5 s"),
        ({"lease_s": 3601.0}, "lease is 3601 s"),
        ({"lease_s": float("nan")}, "lease is nan s"),
    ],
)
def test_a_pace_outside_its_limits_is_refused_by_name(options: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        Pace(**options)  # type: ignore[arg-type]


def test_a_clock_stands_until_it_is_run_and_again_when_it_is_stopped() -> None:
    clock = Clock(16, frame=4)
    assert clock.at(9.0) == 4
    clock.run(10.0)
    assert clock.at(11.0) == 20
    clock.stop(12.0)
    assert clock.at(99.0) == 36


def test_running_a_clock_that_runs_changes_nothing() -> None:
    clock = Clock(16)
    clock.run(0.0)
    clock.run(1.0)
    assert clock.at(2.0) == 32


def test_a_clock_knows_when_it_reaches_a_frame_only_while_it_runs() -> None:
    clock = Clock(16)
    assert clock.reaches(8) is None
    clock.run(1.0)
    assert clock.reaches(8) == 1.5


def test_a_clock_that_is_set_goes_on_from_there() -> None:
    clock = Clock(16)
    clock.run(0.0)
    clock.set(100, 5.0)
    assert clock.at(6.0) == 116


def test_nothing_is_shown_before_the_first_frame() -> None:
    assert Position(Pace()).shown(0, 0.0) == -1


def test_the_clock_shows_no_more_than_is_delivered() -> None:
    position = Position(Pace())
    position.run(True, 0.0)
    assert position.shown(9, 0.25) == 4
    assert position.shown(9, 60.0) == 8


def test_a_report_replaces_the_clock_and_an_older_one_is_old_news() -> None:
    position = Position(Pace())
    position.run(True, 0.0)
    position.report(3, 5.0)
    position.report(2, 6.0)
    assert position.is_reported
    assert position.shown(21, 60.0) == 3


def test_after_the_reports_a_clock_goes_on_from_the_last_one() -> None:
    position = Position(Pace())
    position.run(True, 0.0)
    position.report(3, 5.0)
    position.reports_end(10.0)
    assert not position.is_reported
    assert position.shown(100, 11.0) == 19


def test_a_frame_is_expected_by_the_frame_rate_from_the_last_report_on() -> None:
    position = Position(Pace(fps=8))
    position.run(True, 0.0)
    assert position.expects(8) == 1.0
    position.report(4, 3.0)
    assert position.expects(12) == 4.0


def test_nothing_is_expected_of_a_clock_that_stands_or_of_an_unpaced_session() -> None:
    assert Position(Pace()).expects(8) is None
    unpaced = Position(Pace(fps=0))
    unpaced.run(True, 0.0)
    assert unpaced.expects(8) is None


def test_a_late_block_makes_the_clock_wait() -> None:
    position = Position(Pace())
    position.run(True, 0.0)
    position.late(21, 10.0)
    assert position.expects(37) == 11.0


def test_a_block_in_time_leaves_the_clock_alone() -> None:
    position = Position(Pace())
    position.run(True, 0.0)
    position.late(21, 1.0)
    assert position.expects(32) == 2.0


def test_the_time_in_which_nobody_looked_does_not_count_as_shown() -> None:
    position = Position(Pace())
    position.run(True, 0.0)
    position.run(False, 1.0)
    position.run(True, 50.0)
    assert position.shown(100, 50.5) == 24


def test_a_reported_frame_is_expected_anew_once_somebody_looks_again() -> None:
    position = Position(Pace())
    position.run(True, 0.0)
    position.report(0, 0.0)
    position.run(False, 1.0)
    position.run(True, 50.0)
    assert position.expects(16) == 51.0


def test_a_viewer_can_be_put_at_any_frame() -> None:
    position = Position(Pace())
    position.run(True, 0.0)
    position.report(90, 5.0)
    position.go_on_from(40, 6.0)
    assert position.shown(100, 6.0) == 40


def test_who_says_that_all_was_seen_at_once_gets_no_more_blocks_than_the_pace() -> None:
    blocks = BlockLengths(3, 3)
    session = Session(Pace(fps=16, ahead=1), blocks, 0.0)
    session.schedule(Blend.of("noon"), 0, None, "cue", 0.0)
    session.start("start", 0.0)
    begun, now = list[float](), 0.0
    while len(begun) < 20:
        due = session.due(now)
        assert due is not None
        now = max(now, due)
        plan = session.begin_block(now)
        session.delivered(plan, now)
        session.shown(plan.end_frame - 1, now)
        begun.append(now)
    assert begun[-1] == pytest.approx(17 * 0.75, rel=0.05)
