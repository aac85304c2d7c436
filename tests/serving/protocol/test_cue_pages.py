"""Cues of sessions in answers that any client can take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.config.geometry import BlockLengths
from serving.errors import InvalidRequest, WrongState
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import write_cue
from serving.protocol.cue_pages import applied_page, next_cues, pending_page, recent_cues
from serving.session.pacing import Pace
from serving.session.state_machine import Session
from serving.timeline.cue import MAX_BLENDED_PROMPTS, MAX_PROMPT_CHARACTERS, Blend

DEFAULT_CLIENT = 4 << 20
LONG = Blend.of("x" * 9_800)
LONGEST = Blend((("🎈" * MAX_PROMPT_CHARACTERS, 1.0),) * MAX_BLENDED_PROMPTS)


def session(count: int, blend: Blend) -> Session:
    logic = Session(Pace(), BlockLengths(), 0.0)
    for number in range(count):
        logic.schedule(blend, 12 * number, None, "", 0.0)
    return logic


def made(logic: Session, blocks: int) -> Session:
    logic.start("", 0.0)
    for _ in range(blocks):
        logic.delivered(logic.begin_block(0.0), 0.0)
    return logic


@pytest.mark.parametrize(("count", "blend"), [(450, LONG), (300, LONGEST)], ids=["long", "as long as they can be"])
def test_a_state_fits_a_client_that_was_told_nothing_whatever_its_cues(count: int, blend: Blend) -> None:
    logic = made(session(count, blend), 150)
    state = pb.Session(pending=next_cues(logic), applied=recent_cues(logic.applied), prompt=logic.prompt)
    assert state.ByteSize() < DEFAULT_CLIENT
    assert state.pending[0] == write_cue(logic.pending[0].cue)
    assert state.applied[-1].frame == logic.blocks.pixel_frames(149)


def test_a_state_has_the_first_of_many_short_cues() -> None:
    logic = session(2000, Blend.of("noon"))
    assert next_cues(logic) == [write_cue(pending.cue) for pending in logic.pending[:500]]


@pytest.mark.parametrize(("count", "blend"), [(450, LONG), (10, LONGEST)], ids=["long", "as long as they can be"])
def test_pages_that_fit_have_every_cue_that_is_to_come(count: int, blend: Blend) -> None:
    logic, frames, token = session(count, blend), list[int](), ""
    while True:
        page = pending_page(logic, token, 1000)
        assert page.ByteSize() < DEFAULT_CLIENT
        frames += [cue.frame for cue in page.pending]
        if not (token := page.next_page_token):
            break
    assert frames == [12 * number for number in range(count)]


@given(st.integers(1, 9), st.integers(0, 30))
def test_cues_that_apply_between_two_pages_move_no_other(size: int, blocks: int) -> None:
    logic = session(40, Blend.of("noon"))
    first = pending_page(logic, "", size)
    made(logic, blocks)
    rest = pending_page(logic, first.next_page_token, 1000)
    seen = {cue.frame for cue in (*first.pending, *rest.pending)}
    assert seen >= {pending.cue.frame for pending in logic.pending}
    assert len(seen) == len(first.pending) + len(rest.pending)


def test_a_page_of_what_has_applied_fits_too() -> None:
    page = applied_page(made(session(20, LONGEST), 20), "", 1000)
    assert (page.ByteSize() < DEFAULT_CLIENT, page.next_page_token) == (True, "0.1")


def test_a_token_is_of_one_take_and_one_list() -> None:
    logic = session(3, Blend.of("noon"))
    token = pending_page(logic, "", 1).next_page_token
    with pytest.raises(InvalidRequest, match="is not one that ListPendingCues gave"):
        pending_page(logic, "here", 0)
    with pytest.raises(InvalidRequest, match="page_size is 1001"):
        pending_page(logic, "", 1001)
    logic.reset("", 0.0)
    with pytest.raises(WrongState, match="has been reset since"):
        pending_page(logic, token, 0)
