"""Commands that come more than once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.config.geometry import BlockLengths
from serving.errors import CommandIdReused, ControllerReplaced, SessionError, WrongState
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.commands import Answer, handle
from serving.session.pacing import Pace
from serving.session.state_machine import Session, Stage, State


def session() -> Session:
    return Session(Pace(), BlockLengths(), 0.0)


def cue(text: str, frame: int | None = None) -> pb.Cue:
    return pb.Cue(frame=frame, prompts=[pb.WeightedPrompt(text=text)])


def command(name: str, **action: Any) -> pb.Command:
    return pb.Command(id=name, client_id="ann", **action)


def test_a_cue_for_now_that_is_sent_again_later_keeps_its_frame() -> None:
    logic = session()
    now = command("night", schedule_prompt=cue("night"))
    first = handle(logic, now, 0.0)
    handle(logic, command("go", start=pb.Start()), 0.0)
    logic.delivered(logic.begin_block(0.0), 0.0)
    again = handle(logic, now, 1.0)
    assert (again.receipts, again.repeated) == (first.receipts, True)
    assert logic.pending == ()


def test_a_refused_command_stays_refused_though_it_could_be_done_by_now() -> None:
    logic = session()
    early = command("go", start=pb.Start())
    with pytest.raises(WrongState, match="no cue is at frame 0"):
        handle(logic, early, 0.0)
    handle(logic, command("noon", schedule_prompt=cue("noon", 0)), 0.0)
    with pytest.raises(WrongState, match="no cue is at frame 0"):
        handle(logic, early, 0.0)
    assert handle(logic, command("go now", start=pb.Start()), 0.0).receipts[0].frame == 0


def test_a_reset_is_done_once_and_answers_outlive_it() -> None:
    logic = session()
    noon = command("noon", schedule_prompt=cue("noon", 0))
    handle(logic, noon, 0.0)
    for _ in range(3):
        assert handle(logic, command("anew", reset=pb.Reset()), 0.0).receipts[0].stage is Stage.ACCEPTED
    assert logic.take == 1
    assert handle(logic, noon, 0.0).repeated
    assert logic.pending == ()


def test_the_same_id_with_another_content_is_refused_and_changes_nothing() -> None:
    logic = session()
    handle(logic, command("one", schedule_prompt=cue("noon", 0)), 0.0)
    before = logic.record(0.0)
    for other in (cue("night", 0), cue("noon", 9), cue("noon")):
        with pytest.raises(CommandIdReused):
            handle(logic, command("one", schedule_prompt=other), 0.0)
    assert logic.record(0.0) == before


def test_an_answer_is_found_again_on_the_replica_that_goes_on() -> None:
    logic = session()
    noon = command("noon", schedule_prompt=cue("noon", 0))
    first = handle(logic, noon, 0.0)
    with pytest.raises(WrongState):
        handle(logic, command("wait", pause=pb.Pause()), 0.0)
    moved = Session.of(logic.record(0.0), BlockLengths(), 5.0)
    assert handle(moved, noon, 5.0) == Answer(first.receipts[:1], repeated=True)
    with pytest.raises(WrongState, match="only a running one can pause"):
        handle(moved, command("wait", pause=pb.Pause()), 5.0)


def test_a_fork_knows_nothing_of_what_was_asked_of_the_first() -> None:
    logic = session()
    noon = command("noon", schedule_prompt=cue("noon", 0))
    handle(logic, noon, 0.0)
    logic.attach("ann", reattach=False)
    fork = logic.copy(0, 0.0)
    fork.forget_clients()
    assert (fork.receipts.entries, fork.controller) == ((), "")
    assert not handle(fork, noon, 0.0).repeated


def test_a_replaced_controller_steers_no_more_and_still_hears_its_answers() -> None:
    logic = session()
    noon = command("noon", schedule_prompt=cue("noon", 0))
    handle(logic, noon, 0.0)
    assert handle(logic, noon, 0.0, steers=False).repeated
    with pytest.raises(ControllerReplaced, match="attach again"):
        handle(logic, command("go", start=pb.Start()), 0.0, steers=False)
    assert logic.state is State.READY


def test_a_controller_that_returns_takes_nothing_from_who_has_come_since() -> None:
    logic = session()
    assert logic.attach("ann", reattach=False)
    assert logic.attach("ann", reattach=True)
    assert logic.attach("bea", reattach=False)
    assert not logic.attach("ann", reattach=True)
    moved = Session.of(logic.record(0.0), BlockLengths(), 0.0)
    assert not moved.attach("ann", reattach=True)
    assert moved.attach("bea", reattach=True)
    assert moved.attach("ann", reattach=False)


actions = st.one_of(
    st.builds(
        lambda text, frame: {"schedule_prompt": cue(text, frame)}, st.sampled_from("ab"), st.integers(0, 60)
    ),
    st.integers(0, 60).map(lambda frame: {"remove_prompt": pb.RemovePrompt(frame=frame)}),
    st.sampled_from(
        [
            {"start": pb.Start()},
            {"pause": pb.Pause()},
            {"resume": pb.Resume()},
            {"reset": pb.Reset()},
            {"cut": pb.Cut()},
            {"restyle": pb.Restyling(noise_scale=0.5)},
        ]
    ),
)


def told(logic: Session, one: pb.Command) -> object:
    try:
        return handle(logic, one, 0.0).receipts[0]
    except SessionError as error:
        return type(error), str(error)


@given(st.lists(actions, max_size=20), st.data())
def test_commands_that_are_doubled_and_come_late_are_as_if_each_had_come_once(
    asked: list[dict[str, Any]], data: st.DataObject
) -> None:
    once, often = session(), session()
    sent: list[tuple[pb.Command, object]] = []
    for number, action in enumerate(asked):
        one = command(str(number), **action)
        sent.append((one, told(once, one)))
        assert told(often, one) == sent[-1][1]
        for late, answer in data.draw(st.lists(st.sampled_from(sent), max_size=3)):
            assert told(often, late) == answer
        assert often.record(0.0) == once.record(0.0)
