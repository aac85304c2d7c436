"""Whether a session shows that a command was taken whose answer is not there."""

from __future__ import annotations

from typing import Any

import pytest

from serving.client.pending_commands import Sent
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.requests import new_cue
from serving.timeline.cue import Transition

BALLOON = new_cue("a red balloon", 12)


def sent(**action: Any) -> Sent:
    return Sent(pb.Command(id="x", **action), take=0, next_frame=21)


def test_a_cue_is_found_pending_or_applied() -> None:
    command = sent(schedule_prompt=BALLOON)
    pending = command.answer(pb.Session(pending=[BALLOON]))
    applied = command.answer(pb.Session(applied=[pb.AppliedCue(cue=BALLOON, frame=21)]))
    assert pending is not None
    assert applied is not None
    assert (pending.command_id, pending.stage, pending.cue_frame) == ("x", pb.RECEIPT_STAGE_ACCEPTED, 12)
    assert (applied.command, applied.frame) == (pb.COMMAND_KIND_SCHEDULE_PROMPT, 21)


def test_another_prompt_or_frame_is_another_cue() -> None:
    command = sent(schedule_prompt=BALLOON)
    assert command.answer(pb.Session(pending=[new_cue("a blue fish", 12)])) is None
    assert command.answer(pb.Session(pending=[new_cue("a red balloon", 13)])) is None


def test_a_cue_that_meant_now_is_not_an_earlier_one_of_the_same_words() -> None:
    command = sent(schedule_prompt=new_cue("a red balloon"))
    assert command.answer(pb.Session(pending=[new_cue("a red balloon", 20)])) is None
    assert command.answer(pb.Session(pending=[new_cue("a red balloon", 33)])) is not None


def test_a_removed_cue_is_neither_pending_nor_applied() -> None:
    command = sent(remove_prompt=pb.RemovePrompt(frame=12))
    assert command.answer(pb.Session()) is not None
    assert command.answer(pb.Session(pending=[BALLOON])) is None
    assert command.answer(pb.Session(applied=[pb.AppliedCue(cue=BALLOON)])) is None


def test_a_moved_cue_is_where_it_was_moved_to() -> None:
    command = sent(move_prompt=pb.MovePrompt(frame=12, to_frame=40))
    assert command.answer(pb.Session(pending=[BALLOON])) is None
    assert command.answer(pb.Session(pending=[new_cue("a red balloon", 40)])) is not None


@pytest.mark.parametrize(
    ("action", "state", "taken"),
    [
        ({"start": pb.Start()}, pb.SESSION_STATE_READY, False),
        ({"start": pb.Start()}, pb.SESSION_STATE_RUNNING, True),
        ({"pause": pb.Pause()}, pb.SESSION_STATE_RUNNING, False),
        ({"pause": pb.Pause()}, pb.SESSION_STATE_PAUSED, True),
        ({"resume": pb.Resume()}, pb.SESSION_STATE_PAUSED, False),
        ({"resume": pb.Resume()}, pb.SESSION_STATE_RUNNING, True),
    ],
)
def test_the_state_shows_whether_it_was_changed(action: Any, state: pb.SessionState, taken: bool) -> None:
    assert (sent(**action).answer(pb.Session(state=state)) is not None) == taken


def test_a_reset_shows_in_the_take() -> None:
    assert sent(reset=pb.Reset()).answer(pb.Session(take=0)) is None
    assert sent(reset=pb.Reset()).answer(pb.Session(take=1)) is not None


def test_a_cue_has_its_transition() -> None:
    cue = new_cue("a red balloon", None, Transition(4, "slerp"))
    assert not cue.HasField("frame")
    assert (cue.transition.blocks, cue.transition.method) == (4, pb.TRANSITION_METHOD_SLERP)
