"""Forks, snapshots, recordings: everything by which a session goes on elsewhere."""

from __future__ import annotations

import io
import time

import av
import grpc
import numpy as np
import pytest

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.scenes import NIGHT, NOON, chunks, create, cue, frames_of, pictures, start, watch

Stub = sessions_pb2_grpc.SessionsStub


def paused(stub: Stub, end_frame: int, *cues: pb.Cue) -> pb.Session:
    """A session that is paused once it has made the frames before `end_frame`."""
    session = create(stub, *cues)
    start(stub, session)
    chunks(watch(stub, session), end_frame)
    stub.Pause(pb.PauseRequest(session_id=session.id))
    time.sleep(0.5)
    found: pb.Session = stub.GetSession(pb.GetSessionRequest(session_id=session.id))
    return found


def went_on(stub: Stub, session: pb.Session, from_frame: int, end_frame: int) -> list[pb.Chunk]:
    stub.Resume(pb.ResumeRequest(session_id=session.id))
    return chunks(watch(stub, session, from_frame), end_frame)


def test_a_fork_at_the_present_block_shows_the_same_as_the_session(stub: Stub) -> None:
    session = paused(stub, 33)
    fork = stub.ForkSession(pb.ForkSessionRequest(session_id=session.id))
    end = session.next_frame + 36
    assert went_on(stub, fork, session.next_frame, end) == went_on(stub, session, session.next_frame, end)


def test_a_fork_at_an_earlier_frame_takes_another_turn_there(stub: Stub) -> None:
    session = paused(stub, 69, cue(NOON, 0), cue(NIGHT, 45))
    fork = stub.ForkSession(pb.ForkSessionRequest(session_id=session.id, frame=50))
    assert (fork.next_frame, [entry.frame for entry in fork.applied]) == (45, [0])
    stub.RemovePrompt(pb.RemovePromptRequest(session_id=fork.id, frame=45))
    noon = went_on(stub, fork, 45, 69)
    night = chunks(watch(stub, session, 45), 69)
    assert frames_of(noon) == frames_of(night)
    assert pictures(noon).mean() > pictures(night).mean() + 5


def test_a_fork_that_changes_nothing_repeats_the_session(stub: Stub) -> None:
    session = paused(stub, 57, cue(NOON, 0), cue(NIGHT, 33))
    fork = stub.ForkSession(pb.ForkSessionRequest(session_id=session.id, frame=21))
    assert went_on(stub, fork, 21, 57) == chunks(watch(stub, session, 21), 57)


def test_a_restored_session_goes_on_where_the_snapshot_was_taken(stub: Stub) -> None:
    session = paused(stub, 33)
    saved = stub.SnapshotSession(pb.SnapshotSessionRequest(session_id=session.id))
    restored = stub.RestoreSession(pb.RestoreSessionRequest(snapshot=saved.snapshot))
    assert restored.id != session.id
    assert restored.next_frame == saved.next_frame == session.next_frame
    assert frames_of(went_on(stub, restored, saved.next_frame, saved.next_frame + 24))


def test_bytes_that_are_no_snapshot_are_refused(stub: Stub) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        stub.RestoreSession(pb.RestoreSessionRequest(snapshot=b"not a snapshot"))
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_recording_holds_the_frames_that_were_streamed(stub: Stub) -> None:
    session = create(stub, fps=16, ahead=1)
    begun = stub.StartRecording(pb.StartRecordingRequest(session_id=session.id))
    start(stub, session)
    streamed = chunks(watch(stub, session), 45)
    stub.Pause(pb.PauseRequest(session_id=session.id))
    time.sleep(1)
    finished = stub.StopRecording(pb.StopRecordingRequest(session_id=session.id))
    assert finished.finished
    assert finished.name == begun.name
    pieces = stub.ReadRecording(pb.ReadRecordingRequest(name=begun.name))
    film = b"".join(piece.data for piece in pieces)
    assert len(film) == finished.bytes
    with av.open(io.BytesIO(film), "r") as container:
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert len(shown) == finished.frames >= 45
    assert (shown[:45] == pictures(streamed)[:45]).all()
