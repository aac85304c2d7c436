from __future__ import annotations

import time

import grpc
import pytest

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.conftest import SLOTS
from tests.serving.live.scenes import NIGHT, NOON, chunks, create, cue, frames_of, pictures, start, watch

Stub = sessions_pb2_grpc.SessionsStub


def refused(code: grpc.StatusCode, words: str, call: object, request: object) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        call(request)  # type: ignore[operator]
    assert refusal.value.code() is code
    assert words in (refusal.value.details() or "")


def test_nothing_is_generated_before_the_start(stub: Stub) -> None:
    session = create(stub)
    assert session.state == pb.SESSION_STATE_READY
    time.sleep(0.5)
    assert stub.GetSession(pb.GetSessionRequest(session_id=session.id)).current_start_frame == 0


def test_frames_come_in_order_none_twice_and_none_missing(stub: Stub) -> None:
    session = create(stub)
    start(stub, session)
    found = chunks(watch(stub, session), 69)
    assert frames_of(found) == list(range(69))
    assert [chunk.first_frame for chunk in found] == [0, 9, 21, 33, 45, 57]
    assert pictures(found).shape == (69, 96, 160, 3)


def test_a_viewer_who_comes_late_can_begin_at_any_chunk(stub: Stub) -> None:
    session = create(stub)
    start(stub, session)
    early = chunks(watch(stub, session), 57)
    late = chunks(watch(stub, session, from_frame=40), 57)
    assert late == early[3:]
    assert (pictures(late) == pictures(early)[33:]).all()


def test_start_without_a_cue_at_frame_0_is_refused(stub: Stub) -> None:
    session = create(stub, cue(NOON, 33))
    request = pb.StartRequest(session_id=session.id)
    refused(grpc.StatusCode.FAILED_PRECONDITION, "no cue is at frame 0", stub.Start, request)


def test_a_cue_in_the_past_is_refused_and_the_earliest_frame_named(stub: Stub) -> None:
    session = create(stub)
    start(stub, session)
    chunks(watch(stub, session), 33)
    request = pb.SchedulePromptRequest(session_id=session.id, cue=cue(NIGHT, 9))
    refused(grpc.StatusCode.OUT_OF_RANGE, "earliest possible frame", stub.SchedulePrompt, request)


def test_a_cue_applies_at_the_first_block_at_or_after_its_frame(stub: Stub) -> None:
    session = create(stub, cue(NOON, 0), cue(NIGHT, 22))
    start(stub, session)
    chunks(watch(stub, session), 45)
    applied = stub.GetSession(pb.GetSessionRequest(session_id=session.id)).applied
    assert [(entry.cue.frame, entry.frame) for entry in applied] == [(0, 0), (22, 33)]


def test_one_more_session_than_slots_is_refused_until_one_ends(stub: Stub) -> None:
    sessions = [create(stub) for _ in range(SLOTS)]
    refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "taken", stub.CreateSession, pb.CreateSessionRequest())
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=sessions[0].id))
    assert create(stub).state == pb.SESSION_STATE_READY


def test_an_unknown_session_is_not_found(stub: Stub) -> None:
    refused(grpc.StatusCode.NOT_FOUND, "no session", stub.GetSession, pb.GetSessionRequest(session_id="nobody"))


def test_a_reset_begins_a_new_take_that_shows_the_same(stub: Stub) -> None:
    session = create(stub)
    start(stub, session)
    first = chunks(watch(stub, session), 33)
    stub.Reset(pb.ResetRequest(session_id=session.id))
    stub.SchedulePrompt(pb.SchedulePromptRequest(session_id=session.id, cue=cue(NOON, 0)))
    start(stub, session)
    assert chunks(watch(stub, session), 33) == first
    assert stub.GetSession(pb.GetSessionRequest(session_id=session.id)).take == 1
