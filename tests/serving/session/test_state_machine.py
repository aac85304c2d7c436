"""The rules of a session, one by one; `test_session_machine.py` mixes them."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.config.geometry import BlockLengths
from serving.errors import (
    FrameOutOfRange,
    InvalidRequest,
    LimitReached,
    SessionNotFound,
    TimelineError,
    WrongState,
)
from serving.session.cue_queue import MAX_PENDING
from serving.session.pacing import UNREPORTED_BLOCKS, Pace
from serving.session.state_machine import LAST_FRAME, BlockPlan, CommandKind, Receipt, Session, Stage, State
from serving.timeline.cue import METHODS, Blend, Cue, Method, Restyling, Transition
from serving.timeline.schedule import Step, schedule
from serving.timeline.timeline import Timeline

WHEN = ("at noon", "at dusk", "at night", "in snow")
NOON, DUSK, NIGHT, SNOW = (Blend.of(f"a red balloon over the hills {when}") for when in WHEN)
USUAL = Pace()


def opened(pace: Pace = USUAL, *, viewers: int = 1) -> Session:
    """A session that can be started."""
    session = Session(pace, BlockLengths(), 0.0)
    session.schedule(NOON, 0, None, "noon", 0.0)
    for _ in range(viewers):
        session.viewer_came(0.0)
    return session


def started(pace: Pace = USUAL, *, viewers: int = 1) -> Session:
    session = opened(pace, viewers=viewers)
    session.start("start", 0.0)
    return session


def make(session: Session, blocks: int, now: float = 0.0) -> list[BlockPlan]:
    """Begin and deliver blocks, whether they are due or not."""
    plans = []
    for _ in range(blocks):
        plans.append(session.begin_block(now))
        session.delivered(plans[-1], now)
    return plans


def make_due(session: Session, now: float) -> int:
    """Begin and deliver what may be made at `now`; returns how many blocks."""
    count = 0
    while (due := session.due(now)) is not None and due <= now:
        make(session, 1, now)
        count += 1
    return count


def dropped(command_id: str, frame: int, cue_frame: int) -> Receipt:
    return Receipt(command_id, CommandKind.SCHEDULE_PROMPT, Stage.DROPPED, frame, cue_frame)


# States


def test_a_session_is_ready_once_a_cue_is_at_frame_0_and_no_longer_when_it_is_removed() -> None:
    session = Session(Pace(), BlockLengths(), 0.0)
    states = [session.state]
    session.schedule(NIGHT, 9, None, "", 0.0)
    states.append(session.state)
    session.move(9, 0, "", 0.0)
    states.append(session.state)
    session.remove(0, "", 0.0)
    assert [*states, session.state] == [State.CREATED, State.CREATED, State.READY, State.CREATED]


def test_a_start_without_a_cue_at_frame_0_is_refused() -> None:
    session = Session(Pace(), BlockLengths(), 0.0)
    session.schedule(NIGHT, 9, None, "", 0.0)
    with pytest.raises(WrongState, match="no cue is at frame 0"):
        session.start("", 0.0)


def test_nothing_is_due_before_the_start() -> None:
    session = opened()
    assert session.due(0.0) is None
    session.start("", 5.0)
    assert session.due(5.0) == 5.0


COMMANDS: dict[str, Callable[[Session], object]] = {
    "schedule": lambda session: session.schedule(NIGHT, 500, None, "", 9.0),
    "remove": lambda session: session.remove(100, "", 9.0),
    "move": lambda session: session.move(100, 200, "", 9.0),
    "start": lambda session: session.start("", 9.0),
    "pause": lambda session: session.pause(None, "", 9.0),
    "resume": lambda session: session.resume("", 9.0),
    "reset": lambda session: session.reset("", 9.0),
    "shown": lambda session: session.shown(0, 9.0),
}

REFUSED = {
    State.CREATED: {"start", "pause", "resume", "shown"},
    State.READY: {"pause", "resume", "shown"},
    State.RUNNING: {"start", "resume"},
    State.PAUSED: {"start", "pause"},
    State.ENDED: set(COMMANDS),
}


def in_state(state: State) -> Session:
    session = Session(Pace(), BlockLengths(), 0.0)
    session.schedule(SNOW, 100, None, "", 0.0)
    if state is not State.CREATED:
        session.schedule(NOON, 0, None, "", 0.0)
    if state in (State.RUNNING, State.PAUSED, State.ENDED):
        session.start("", 0.0)
        make(session, 2)
    if state is State.PAUSED:
        session.pause(3, "", 0.0)
    if state is State.ENDED:
        session.end()
    return session


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("state", State)
def test_a_command_in_a_wrong_state_is_refused_and_changes_nothing(state: State, name: str) -> None:
    session = in_state(state)
    assert session.state is state
    if name not in REFUSED[state]:
        COMMANDS[name](session)
        assert session.lease_ends() == 69.0
        return
    before = session.record(9.0)
    with pytest.raises((WrongState, SessionNotFound, InvalidRequest)):
        COMMANDS[name](session)
    assert session.record(9.0) == before
    assert session.lease_ends() == 60.0


def test_an_ended_session_is_not_found() -> None:
    with pytest.raises(SessionNotFound, match="open another one"):
        in_state(State.ENDED).resume("", 0.0)


def test_a_reset_begins_a_new_take_at_frame_0_without_cues() -> None:
    session = started()
    make(session, 3)
    session.schedule(NIGHT, 100, None, "night", 0.0)
    receipts = session.reset("again", 1.0)
    assert receipts == (Receipt("again", CommandKind.RESET, Stage.ACCEPTED, 0), dropped("night", 105, 100))
    assert (session.state, session.take, session.next_block) == (State.CREATED, 1, 0)
    assert (session.delivered_frames, session.pending, len(session.applied), session.prompt) == (0, (), 0, "")
    assert session.shown_frame(9.0) == -1
    assert session.viewers == 1


# Cues


def test_a_cue_at_a_block_boundary_applies_there_and_one_behind_it_with_the_next_block() -> None:
    session = started()
    session.schedule(NIGHT, 21, None, "on", 0.0)
    session.schedule(SNOW, 22, None, "behind", 0.0)
    plans = make(session, 5)
    assert [(plan.applied.command_id, plan.applied.frame) for plan in plans if plan.applied] == [
        ("noon", 0), ("on", 21), ("behind", 33),
    ]  # fmt: skip
    assert [plan.first_frame for plan in plans] == [0, 9, 21, 33, 45]


def test_a_cue_without_a_frame_means_the_earliest_possible_one() -> None:
    session = Session(Pace(), BlockLengths(), 0.0)
    assert session.schedule(NOON, None, None, "", 0.0)[0].cue_frame == 0
    session.start("", 0.0)
    make(session, 2)
    assert session.schedule(NIGHT, None, None, "", 0.0)[0] == Receipt(
        "", CommandKind.SCHEDULE_PROMPT, Stage.ACCEPTED, 21, 21
    )


def test_a_cue_in_the_past_is_refused_and_the_earliest_frame_named() -> None:
    session = started()
    make(session, 2)
    session.schedule(SNOW, 40, None, "", 0.0)
    with pytest.raises(FrameOutOfRange, match="frame 9 is over; the earliest possible frame is 21"):
        session.schedule(NIGHT, 9, None, "", 0.0)
    with pytest.raises(FrameOutOfRange, match="frame 9 is over; the earliest possible frame is 21"):
        session.move(40, 9, "", 0.0)


def test_a_frame_between_the_last_begun_block_and_the_next_is_not_in_the_past() -> None:
    session = started()
    make(session, 2)
    assert session.schedule(NIGHT, 10, None, "", 0.0)[0].frame == 21


def test_a_frame_beyond_what_numbers_can_hold_is_refused() -> None:
    session = started()
    session.schedule(NIGHT, LAST_FRAME, None, "", 0.0)
    with pytest.raises(FrameOutOfRange, match="never reached"):
        session.schedule(NIGHT, LAST_FRAME + 1, None, "", 0.0)
    with pytest.raises(TimelineError, match="frame -1 is before the beginning"):
        session.schedule(NIGHT, -1, None, "", 0.0)


def test_the_cue_at_frame_0_has_nothing_to_change_from() -> None:
    session = Session(Pace(), BlockLengths(), 0.0)
    with pytest.raises(TimelineError, match="transition"):
        session.schedule(NOON, 0, Transition(3), "", 0.0)
    assert session.pending == ()


def test_a_cue_on_a_frame_that_has_one_overwrites_it() -> None:
    session = started()
    session.schedule(NIGHT, 30, None, "night", 0.0)
    assert session.schedule(SNOW, 30, None, "snow", 0.0)[1:] == (dropped("night", 33, 30),)
    assert [plan.applied.command_id for plan in make(session, 4) if plan.applied] == ["noon", "snow"]


def test_of_two_cues_on_one_block_the_later_wins_and_the_other_is_dropped_then() -> None:
    session = started()
    session.schedule(SNOW, 20, None, "snow", 0.0)
    session.schedule(NIGHT, 10, None, "night", 0.0)
    receipts = make(session, 3)[2].receipts
    assert receipts == (
        dropped("night", 21, 10),
        Receipt("snow", CommandKind.SCHEDULE_PROMPT, Stage.APPLIED, 21, 20),
    )


def test_a_removed_cue_never_applies() -> None:
    session = started()
    session.schedule(NIGHT, 21, None, "night", 0.0)
    receipts = session.remove(21, "away", 0.0)
    accepted = Receipt("away", CommandKind.REMOVE_PROMPT, Stage.ACCEPTED, 21, 21)
    assert receipts == (accepted, dropped("night", 21, 21))
    assert [plan.applied.command_id for plan in make(session, 5) if plan.applied] == ["noon"]


def test_a_cut_is_a_cue_of_the_prompt_in_force_at_the_next_block() -> None:
    session = started()
    make(session, 2)
    assert session.cut("cut", 0.0) == (Receipt("cut", CommandKind.CUT, Stage.ACCEPTED, 21, 21),)
    assert session.cuts_next
    plan = make(session, 1)[0]
    assert plan.receipts == (Receipt("cut", CommandKind.SCHEDULE_PROMPT, Stage.APPLIED, 21, 21),)
    assert plan.step == Step(2, 21, 21, NOON, restyling=Restyling(cuts=True))
    assert not session.cuts_next


def test_a_cue_that_falls_on_the_block_of_a_cut_keeps_its_prompt_and_cuts() -> None:
    session = started()
    make(session, 2)
    session.schedule(NIGHT, 20, Transition(3), "night", 0.0, Restyling(0.5))
    session.schedule(SNOW, 30, None, "snow", 0.0)
    assert session.cut("cut", 0.0) == (Receipt("cut", CommandKind.CUT, Stage.ACCEPTED, 21, 20),)
    applied = make(session, 1)[0].applied
    assert applied is not None
    assert applied.cue == Cue(20, NIGHT, Transition(3), Restyling(0.5, cuts=True))
    assert [pending.cue for pending in session.pending] == [Cue(30, SNOW)]


def test_pictures_are_restyled_otherwise_under_the_prompt_in_force() -> None:
    session = started()
    make(session, 2)
    assert session.restyle(Restyling(0.5), "more", 0.0) == (
        Receipt("more", CommandKind.RESTYLE, Stage.ACCEPTED, 21, 21),
    )
    session.restyle(Restyling(0.6, follows_motion=False), "most", 0.0)
    plan = make(session, 1)[0]
    assert plan.step == Step(2, 21, 21, NOON, restyling=Restyling(0.6, follows_motion=False))
    assert plan.receipts == (Receipt("more", CommandKind.SCHEDULE_PROMPT, Stage.APPLIED, 21, 21),)


@pytest.mark.parametrize("method", METHODS)
def test_pictures_that_are_restyled_in_a_transition_leave_it_its_way(method: Method) -> None:
    session = started()
    make(session, 2)
    session.schedule(NIGHT, None, Transition(4, method), "night", 0.0)
    quarter = make(session, 1)[0].step
    assert quarter is not None
    assert (quarter.source, quarter.fraction) == (0, 1 / 4)
    session.restyle(Restyling(0.5), "less", 0.0)
    *steps, after = (plan.step for plan in make(session, 4))
    rest = [Step(block, 12 * block - 3, 33, NIGHT, 1, (block - 2) / 3, method) for block in (3, 4, 5)]
    assert steps == [replace(rest[0], restyling=Restyling(0.5)), *rest[1:]]
    assert after is None


def test_restyling_says_something_and_needs_a_prompt() -> None:
    session = started()
    with pytest.raises(InvalidRequest, match="nothing is said of how to restyle; set `noise_scale`"):
        session.restyle(Restyling(), "", 0.0)
    session.restyle(Restyling(0.5), "less", 0.0)
    assert make(session, 1)[0].step == Step(0, 0, 0, NOON, restyling=Restyling(0.5))
    new = Session(Pace(), BlockLengths(), 0.0)
    with pytest.raises(WrongState, match="no prompt is in force yet"):
        new.restyle(Restyling(0.5), "less", 0.0)


def test_a_video_that_has_not_begun_cannot_be_cut() -> None:
    session = started()
    with pytest.raises(WrongState, match="nothing to cut"):
        session.cut("cut", 0.0)
    assert not session.cuts_next


def test_a_video_opens_anew_though_nobody_asked_and_however_many_cues_are_pending() -> None:
    session = started()
    session.reopen()
    assert not session.cuts_next
    make(session, 2)
    for frame in range(1000, 1000 + MAX_PENDING):
        session.schedule(SNOW, frame, None, "snow", 0.0)
    session.reopen()
    (receipt,) = make(session, 1)[0].receipts
    assert receipt == Receipt("", CommandKind.SCHEDULE_PROMPT, Stage.APPLIED, 21, 21)
    session.end()
    session.reopen()


def test_a_cut_over_which_a_cue_is_scheduled_is_dropped_and_told_so() -> None:
    session = started()
    make(session, 2)
    session.cut("cut", 0.0)
    assert session.schedule(NIGHT, None, None, "night", 0.0)[1:] == (dropped("cut", 21, 21),)
    assert not session.cuts_next


def test_a_moved_cue_applies_where_it_was_moved_to_and_over_what_was_there() -> None:
    session = started()
    session.schedule(NIGHT, 21, None, "night", 0.0)
    session.schedule(SNOW, 45, None, "snow", 0.0)
    receipts = session.move(21, 45, "later", 0.0)
    assert receipts == (Receipt("later", CommandKind.MOVE_PROMPT, Stage.ACCEPTED, 45, 45), dropped("snow", 45, 45))
    applied = [plan.applied for plan in make(session, 6) if plan.applied]
    assert [(entry.command_id, entry.frame) for entry in applied] == [("noon", 0), ("night", 45)]


def test_a_cue_that_is_moved_to_where_it_is_stays() -> None:
    session = started()
    session.schedule(NIGHT, 21, None, "night", 0.0)
    assert [receipt.stage for receipt in session.move(21, 21, "", 0.0)] == [Stage.ACCEPTED]
    assert [pending.cue.frame for pending in session.pending] == [0, 21]


def test_only_a_pending_cue_can_be_removed() -> None:
    session = started()
    make(session, 1)
    session.schedule(NIGHT, 40, None, "", 0.0)
    with pytest.raises(InvalidRequest, match="no cue is pending at frame 41; cues are at: 40"):
        session.remove(41, "", 0.0)
    with pytest.raises(FrameOutOfRange, match="the cue at frame 0 has applied"):
        session.remove(0, "", 0.0)


def test_the_first_cue_stays_once_the_session_has_been_started() -> None:
    session = started()
    with pytest.raises(WrongState, match="the cue at frame 0 stays"):
        session.remove(0, "", 0.0)
    with pytest.raises(WrongState, match="the cue at frame 0 stays"):
        session.move(0, 30, "", 0.0)


def test_a_cue_that_changes_nothing_counts_as_applied() -> None:
    session = started()
    session.schedule(NOON, 9, None, "same", 0.0)
    assert [plan.applied.command_id for plan in make(session, 2) if plan.applied] == ["noon", "same"]


def test_ten_thousand_cues_stay_in_order_however_they_come_and_are_moved() -> None:
    session = started()
    for number in range(1, MAX_PENDING):
        session.schedule(NIGHT, 7 * (number * 7919 % MAX_PENDING), None, "", 0.0)
    frames = [7 * number for number in range(MAX_PENDING)]
    assert [pending.cue.frame for pending in session.pending] == frames
    for frame in frames[1:2001]:
        session.move(frame, frame + 1, "", 0.0)
    assert [pending.cue.frame for pending in session.pending[:2001]] == [
        0,
        *(frame + 1 for frame in frames[1:2001]),
    ]


def test_a_full_timeline_takes_no_cue_but_over_one_that_is_there() -> None:
    session = started()
    for frame in range(1, MAX_PENDING):
        session.schedule(NIGHT, frame, None, "", 0.0)
    with pytest.raises(LimitReached, match="10000 cues"):
        session.schedule(SNOW, MAX_PENDING, None, "", 0.0)
    session.schedule(SNOW, MAX_PENDING - 1, None, "", 0.0)


cues = st.lists(
    st.builds(
        Cue,
        st.integers(1, 300),
        st.sampled_from([NOON, DUSK, NIGHT, Blend((("snow", 1.0), ("rain", 3.0)))]),
        st.none() | st.builds(Transition, st.integers(1, 9), st.sampled_from(["linear", "slerp"])),
    ),
    max_size=12,
    unique_by=lambda cue: cue.frame,
)


lengths = st.builds(BlockLengths, st.integers(1, 4), st.integers(1, 5))


@given(cues, lengths, st.data())
def test_steps_are_those_that_the_same_cues_have_offline(
    cues: list[Cue], blocks: BlockLengths, data: st.DataObject
) -> None:
    session = Session(Pace(), blocks, 0.0)
    ordered = sorted([Cue(0, NOON), *cues], key=lambda cue: cue.frame)
    for cue in data.draw(st.permutations(ordered)):
        session.schedule(cue.blend, cue.frame, cue.transition, "", 0.0)
    session.start("", 0.0)
    steps = [plan.step for plan in make(session, 120) if plan.step is not None]
    offline = schedule(Timeline(tuple(ordered)), blocks).steps
    assert steps == [step for step in offline if step.block < 120]


def test_a_transition_is_cut_short_by_the_next_cue_and_starts_from_what_is_in_force() -> None:
    session = started()
    session.schedule(NIGHT, 9, Transition(4, "slerp"), "", 0.0)
    session.schedule(SNOW, 33, Transition(2), "", 0.0)
    steps = [plan.step for plan in make(session, 6)]
    assert steps == [
        Step(0, 0, 0, NOON),
        Step(1, 9, 9, NIGHT, 0, 0.25, "slerp"),
        Step(2, 21, 9, NIGHT, 0, 0.5, "slerp"),
        Step(3, 33, 33, SNOW, 2, 0.5, "linear"),
        Step(4, 45, 33, SNOW, 2, 1.0, "linear"),
        None,
    ]


# Pace


def test_one_block_is_shown_while_one_more_is_ready() -> None:
    session = started(Pace(ahead=1))
    assert make_due(session, 0.0) == 2
    assert session.due(0.1) == pytest.approx(9 / 16)
    assert make_due(session, 9 / 16) == 1
    assert session.due(9 / 16) == pytest.approx(21 / 16)


@pytest.mark.parametrize("ahead", [1, 2, 7, 64])
def test_generation_runs_ahead_of_the_clock_by_the_blocks_asked_for(ahead: int) -> None:
    session = started(Pace(ahead=ahead))
    for tick in range(200):
        make_due(session, tick / 16)
        shown_block = (session.shown_frame(tick / 16) + 3) // 12
        assert session.next_block == shown_block + ahead + 1


def test_reports_hold_generation_back_and_let_it_go_on() -> None:
    session = started(Pace(ahead=2))
    make_due(session, 0.0)
    session.shown(8, 1.0)
    assert make_due(session, 60.0) == 0
    assert session.due(60.0) is None
    session.shown(9, 61.0)
    assert make_due(session, 61.0) == 1


def test_an_unpaced_session_is_held_back_by_reports_alone() -> None:
    session = started(Pace(fps=0, ahead=2))
    assert make_due(session, 0.0) == 1 + UNREPORTED_BLOCKS
    assert make_due(session, 1e6) == 0
    session.shown(session.delivered_frames - 1, 1.0)
    assert make_due(session, 1.0) == 2
    assert session.due(1.0) is None


def test_an_unpaced_session_goes_on_from_the_last_report_when_its_controller_has_gone() -> None:
    session = started(Pace(fps=0, ahead=1))
    make(session, 100)
    session.shown(session.delivered_frames - 1, 1.0)
    session.reports_ended(2.0)
    assert make_due(session, 2.0) == UNREPORTED_BLOCKS


def test_with_no_viewer_a_session_runs_ahead_and_waits() -> None:
    session = started(Pace(ahead=3), viewers=0)
    assert make_due(session, 0.0) == 4
    assert session.due(50.0) is None
    session.viewer_came(50.0)
    assert session.due(50.0) == pytest.approx(50 + 9 / 16)


def test_a_report_of_a_frame_that_was_not_sent_is_refused_and_one_that_goes_back_ignored() -> None:
    session = started()
    make(session, 2)
    session.shown(15, 1.0)
    session.shown(3, 2.0)
    assert session.shown_frame(3.0) == 15
    for frame in (21, -1):
        with pytest.raises(InvalidRequest, match=f"frame {frame} cannot have been shown"):
            session.shown(frame, 3.0)


def test_a_late_block_delays_the_clock_and_is_said_to_be_late() -> None:
    session = started()
    first, second = session.begin_block(0.0), session.begin_block(0.0)
    assert not session.delivered(first, 1.0)
    assert session.delivered(second, 1.0 + 10 / 16)
    assert session.shown_frame(1.0 + 10 / 16) == 9
    assert session.shown_frame(1.0 + 11 / 16) == 10


def test_a_block_in_time_is_not_late() -> None:
    session = started()
    first, second = session.begin_block(0.0), session.begin_block(0.0)
    session.delivered(first, 1.0)
    assert not session.delivered(second, 1.0 + 9 / 16)


def test_a_block_has_time_to_spare_until_the_clock_shows_it_and_a_late_one_less_than_none() -> None:
    session = started()
    first, second = session.begin_block(0.0), session.begin_block(0.0)
    assert session.slack(first, 1.0) is None
    session.delivered(first, 1.0)
    assert session.slack(second, 1.0 + 5 / 16) == pytest.approx(4 / 16)
    assert session.slack(second, 1.0 + 12 / 16) == pytest.approx(-3 / 16)


def test_an_unpaced_block_is_never_late() -> None:
    session = started(Pace(fps=0))
    first, second = session.begin_block(0.0), session.begin_block(0.0)
    session.delivered(first, 1.0)
    assert session.slack(second, 100.0) is None
    assert not session.delivered(second, 100.0)


def test_the_deadline_is_when_the_clock_shows_the_next_block() -> None:
    session = started()
    make(session, 1, now=2.0)
    assert session.expected() == pytest.approx(2 + 9 / 16)


# Pause


def test_a_pause_stops_at_the_frame_that_the_clock_shows() -> None:
    session = started()
    make(session, 3)
    assert session.pause(None, "wait", 0.5)[0].frame == 8
    assert session.shown_frame(99.0) == 8
    assert session.due(99.0) is None


def test_a_pause_stops_at_the_frame_that_was_named_or_reported() -> None:
    session = started()
    make(session, 3)
    session.shown(12, 0.1)
    assert session.pause(None, "", 5.0)[0].frame == 12
    session.resume("", 6.0)
    assert session.pause(30, "", 6.0)[0].frame == 30


def test_a_pause_at_a_frame_that_was_not_made_is_refused() -> None:
    session = started()
    make(session, 2)
    with pytest.raises(FrameOutOfRange, match="the last one made is 20"):
        session.pause(21, "", 0.0)
    assert session.state is State.RUNNING


def test_a_pause_before_the_first_frame_goes_on_at_the_first() -> None:
    session = started()
    plan = session.begin_block(0.0)
    assert session.pause(None, "", 0.0)[0].frame == -1
    session.delivered(plan, 5.0)
    assert session.resume("", 10.0)[0].frame == 0
    assert session.shown_frame(10.0) == 0


def test_a_resume_goes_on_without_a_jump() -> None:
    session = started()
    make(session, 3)
    session.pause(None, "", 1.0)
    assert session.resume("", 100.0)[0].frame == 17
    assert session.shown_frame(100.0) == 16
    assert session.shown_frame(100.0 + 4.5 / 16) == 20


def test_a_block_in_the_making_when_the_session_is_paused_is_still_delivered() -> None:
    session = started()
    make(session, 1)
    plan = session.begin_block(0.0)
    session.pause(None, "", 0.25)
    assert not session.delivered(plan, 50.0)
    assert (session.delivered_frames, session.shown_frame(50.0)) == (21, 4)


def test_a_report_that_a_pause_overtook_counts_once_the_session_goes_on() -> None:
    session = started(Pace(ahead=1))
    make(session, 3)
    session.pause(20, "", 1.0)
    session.shown(21, 1.1)
    session.shown(3, 1.2)
    assert session.shown_frame(3.0) == 20
    session.resume("", 4.0)
    assert session.shown_frame(4.0) == 21
    assert make_due(session, 4.0) == 1


def test_a_viewer_may_have_seen_what_a_lost_copy_had_made() -> None:
    known = started(Pace(ahead=1))
    make(known, 2)
    session = Session.of(known.record(1.0), known.blocks, 1.0)
    session.viewer_came(1.0)
    session.shown(21, 1.0)
    assert session.shown_frame(1.0) == 20
    make(session, 1)
    assert session.shown_frame(1.0) == 21
    assert make_due(session, 1.0) == 1


def test_a_viewer_who_saw_more_pauses_at_the_last_frame_that_is_here() -> None:
    known = started()
    make(known, 2)
    session = Session.of(known.record(1.0), known.blocks, 1.0)
    (receipt,) = session.pause(25, "", 1.0)
    assert receipt.frame == 20
    assert session.shown_frame(2.0) == 20


def test_what_was_seen_of_a_lost_copy_is_forgotten_with_a_reset() -> None:
    known = started()
    make(known, 2)
    session = Session.of(known.record(1.0), known.blocks, 1.0)
    session.reset("", 1.0)
    with pytest.raises(InvalidRequest, match="cannot have been shown"):
        session.shown(8, 1.0)


def test_viewers_who_come_and_go_do_not_move_a_paused_session() -> None:
    session = started()
    make(session, 3)
    session.pause(5, "", 1.0)
    session.viewer_left(2.0)
    session.viewer_came(30.0)
    assert session.shown_frame(40.0) == 5
    assert session.due(40.0) is None


# Lease


def test_the_lease_does_not_run_while_somebody_watches() -> None:
    session = Session(Pace(lease_s=10), BlockLengths(), 0.0)
    assert session.lease_ends() == 10
    session.viewer_came(5.0)
    session.viewer_came(6.0)
    session.viewer_left(7.0)
    assert session.lease_ends() == math.inf
    session.viewer_left(50.0)
    assert session.lease_ends() == 60


def test_every_command_renews_the_lease() -> None:
    session = Session(Pace(lease_s=10), BlockLengths(), 0.0)
    session.schedule(NOON, 0, None, "", 8.0)
    assert session.lease_ends() == 18


# Blocks that fail, and records


def test_a_block_given_up_is_as_if_it_had_not_begun() -> None:
    session = started()
    session.schedule(NIGHT, 9, Transition(3), "night", 0.0)
    make(session, 1)
    before = session.record(0.0)
    plan = session.begin_block(0.0)
    session.give_up_block(plan)
    assert session.record(0.0) == before
    assert session.begin_block(0.0) == plan


def test_a_record_is_plain_data_from_which_a_session_goes_on_the_same() -> None:
    session = started()
    session.schedule(NIGHT, 9, Transition(5), "night", 0.0)
    session.schedule(SNOW, 60, None, "snow", 0.0)
    make(session, 3)
    record = pickle.loads(pickle.dumps(session.record(0.0)))
    other = Session.of(record, BlockLengths(), 1000.0)
    assert other.record(1000.0) == record
    assert make(other, 5, 1000.0) == make(session, 5)


@pytest.mark.parametrize("state", [State.CREATED, State.READY])
def test_a_session_that_has_not_begun_goes_on_from_its_record(state: State) -> None:
    record = in_state(state).record(5.0)
    assert Session.of(record, BlockLengths(), 5.0).record(5.0) == record


def test_a_record_says_where_the_viewer_is_now_however_long_nobody_has_sent_a_command() -> None:
    session = started()
    for tick in range(16 * 60):
        make_due(session, tick / 16)
    assert session.record(60.0).shown == session.shown_frame(60.0) > 900


def test_a_rewound_session_has_the_cues_pending_that_came_later() -> None:
    session = started()
    session.schedule(NIGHT, 9, None, "night", 0.0)
    session.schedule(SNOW, 60, None, "snow", 0.0)
    make(session, 3)
    record = session.copy(1, 0.0).record(0.0)
    assert [entry.command_id for entry in record.applied.entries] == ["noon"]
    assert [(entry.command_id, entry.cue.frame) for entry in record.pending] == [("night", 9), ("snow", 60)]
    assert (record.next_block, record.delivered_frames, record.state) == (1, 9, State.RUNNING)


def test_a_session_rewound_to_its_beginning_goes_on_from_frame_0() -> None:
    session = started()
    make(session, 3)
    again = session.copy(0, 9.0)
    assert again.shown_frame(9.0) == -1
    assert make(again, 1)[0].applied is not None


def test_a_session_that_goes_on_elsewhere_waits_for_its_viewer_where_he_was() -> None:
    session = started()
    make(session, 20)
    other = Session.of(session.record(3.0), BlockLengths(), 50.0)
    assert other.shown_frame(50.0) == 48
    other.viewer_came(60.0)
    assert other.shown_frame(60.5) == 56
