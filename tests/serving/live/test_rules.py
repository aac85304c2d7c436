"""The rules of the protocol and their status codes, as a client without any code of ours meets them."""

from __future__ import annotations

import grpc
import pytest

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from serving.protocol.status import reason_in
from serving.session.cue_queue import MAX_PENDING
from tests.serving.live.scenes import NIGHT, NOON, SNOW, create, cue, described, start, watch
from tests.serving.live.test_copies import paused
from tests.serving.live.test_sessions import refused

Stub = sessions_pb2_grpc.SessionsStub
Code = grpc.StatusCode


def scheduled(session: pb.Session, text: str, frame: int | None = None) -> pb.SchedulePromptRequest:
    return pb.SchedulePromptRequest(session_id=session.id, cue=cue(text, frame))


def test_a_cue_on_a_frame_that_has_one_overwrites_it(stub: Stub) -> None:
    session = create(stub, cue(NOON, 0), cue(NIGHT, 33))
    stub.SchedulePrompt(scheduled(session, SNOW, 33))
    pending = described(stub, session).pending
    assert [(found.frame, found.prompts[0].text) for found in pending] == [(0, NOON), (33, SNOW)]


def test_a_cue_may_fall_on_the_next_block_and_on_nothing_before_it(stub: Stub) -> None:
    session = paused(stub, 33)
    edge = session.next_frame
    late = scheduled(session, SNOW, edge - 12)
    refused(Code.OUT_OF_RANGE, f"earliest possible frame is {edge}", stub.SchedulePrompt, late)
    receipt = stub.SchedulePrompt(scheduled(session, NIGHT, edge))
    assert (receipt.cue_frame, receipt.frame) == (edge, edge)


def test_a_cue_without_a_frame_is_for_the_next_block(stub: Stub) -> None:
    session = paused(stub, 33)
    assert stub.SchedulePrompt(scheduled(session, NIGHT)).cue_frame == session.next_frame


def test_a_session_takes_ten_thousand_cues_and_no_more(stub: Stub) -> None:
    session = create(stub, *(cue(NOON, 12 * number) for number in range(MAX_PENDING)))
    assert described(stub, session).pending_count == MAX_PENDING
    refused(Code.RESOURCE_EXHAUSTED, f"{MAX_PENDING} cues", stub.SchedulePrompt, scheduled(session, NIGHT, 5))


def test_frames_that_are_not_kept_are_refused_and_the_oldest_named(stub: Stub) -> None:
    saved = stub.SnapshotSession(pb.SnapshotSessionRequest(session_id=paused(stub, 33).id))
    restored = stub.RestoreSession(pb.RestoreSessionRequest(snapshot=saved.snapshot))
    words = f"frame 0 is not kept any more; the oldest frame is {saved.next_frame}"
    refused(Code.OUT_OF_RANGE, words, lambda _: next(watch(stub, restored, 0)), None)


@pytest.mark.parametrize(
    ("method", "request_type", "words"),
    [
        ("Pause", pb.PauseRequest, "created"),
        ("Resume", pb.ResumeRequest, "created"),
        ("Start", pb.StartRequest, "no cue is at frame 0"),
    ],
)
def test_what_a_session_cannot_do_before_its_start_is_refused(
    stub: Stub, method: str, request_type: type, words: str
) -> None:
    session = create(stub, cue(NOON, 33))
    refused(Code.FAILED_PRECONDITION, words, getattr(stub, method), request_type(session_id=session.id))


def test_a_refusal_names_its_reason_for_programs(stub: Stub) -> None:
    session = create(stub, cue(NOON, 33))
    with pytest.raises(grpc.RpcError) as early:
        stub.Start(pb.StartRequest(session_id=session.id))
    with pytest.raises(grpc.RpcError) as unknown:
        next(watch(stub, pb.Session(id="nothing")))
    assert reason_in(early.value.trailing_metadata()) == "WRONG_STATE"
    assert str(early.value.details()).startswith("no cue is at frame 0")
    assert reason_in(unknown.value.trailing_metadata()) == "SESSION_NOT_FOUND"


def test_a_command_that_comes_again_has_its_first_answer(stub: Stub) -> None:
    session = create(stub, cue(NOON, 0))
    request = pb.SchedulePromptRequest(session_id=session.id, cue=cue(NIGHT), client_id="ann", command_id="1")
    first, again = stub.SchedulePrompt(request), stub.SchedulePrompt(request)
    assert (first.repeated, again.repeated, again.cue_frame) == (False, True, first.cue_frame)
    request.cue.frame = 33
    refused(Code.INVALID_ARGUMENT, "'1' was used before", stub.SchedulePrompt, request)
    assert len(described(stub, session).pending) == 1


def test_a_session_starts_once_and_resumes_only_after_a_pause(stub: Stub) -> None:
    session = create(stub)
    start(stub, session)
    refused(Code.FAILED_PRECONDITION, "running", stub.Start, pb.StartRequest(session_id=session.id))
    refused(Code.FAILED_PRECONDITION, "running", stub.Resume, pb.ResumeRequest(session_id=session.id))


@pytest.mark.parametrize("frame", [5, 34])
def test_a_cue_that_is_not_there_can_be_neither_removed_nor_moved(stub: Stub, frame: int) -> None:
    session = create(stub, cue(NOON, 0), cue(NIGHT, 33))
    remove = pb.RemovePromptRequest(session_id=session.id, frame=frame)
    move = pb.MovePromptRequest(session_id=session.id, frame=frame, to_frame=57)
    refused(Code.INVALID_ARGUMENT, f"no cue is pending at frame {frame}", stub.RemovePrompt, remove)
    refused(Code.INVALID_ARGUMENT, f"no cue is pending at frame {frame}", stub.MovePrompt, move)
