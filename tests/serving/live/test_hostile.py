"""What a careless or hostile client sends: it is answered in words, leaves nothing behind and disturbs nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.sync.client import connect

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from serving.web.inflow import BYTES_A_SECOND
from serving.web.pictures import HEAD
from tests.serving.live.conftest import SLOTS, Server
from tests.serving.live.scenes import (
    METHODS,
    NIGHT,
    chunks,
    code_of,
    create,
    cue,
    described,
    frames_of,
    start,
    watch,
)  # fmt: skip

Stub = sessions_pb2_grpc.SessionsStub

FLOOD_S = 4

MOST_AT_ONCE = 64
"""Messages that are taken off a sender's hands, for all that is read no faster than at a rate."""

ABOUT_THE_REQUEST = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.fixture
def bystander(stub: Stub) -> Iterator[pb.Session]:
    """A session that goes on meanwhile; no frame of it may be missing afterwards."""
    session = create(stub, seed=99, fps=16, ahead=1)
    start(stub, session)
    events = watch(stub, session)
    chunks(events, 9)
    yield session
    found = chunks(events, 45)
    assert frames_of(found) == list(range(9, 9 + len(frames_of(found))))


def send_bytes(server: Server, method: Any, data: bytes) -> None:
    """Call a method with what need not be a message, and read all that it answers."""
    name, plain = (
        f"/longtake.v1.Sessions/{method.name}",
        {"request_serializer": None, "response_deserializer": None},
    )
    with grpc.insecure_channel(server.address) as channel:
        if method.client_streaming:
            list(channel.stream_stream(name, **plain)(iter([data]), timeout=20))
        elif method.server_streaming:
            list(channel.unary_stream(name, **plain)(data, timeout=20))
        else:
            channel.unary_unary(name, **plain)(data, timeout=20)


def test_a_flood_of_pictures_costs_its_sender_only(server: Server, stub: Stub, bystander: pb.Session) -> None:
    address = f"ws://127.0.0.1:{server.http_port}/ws?input=video"
    picture = HEAD.pack(pb.PICTURE_FORMAT_JPEG, 7, 0) + bytes(1 << 20)
    with connect(address, compression=None, close_timeout=1) as socket:
        began = time.monotonic()
        for _ in range(FLOOD_S * (BYTES_A_SECOND >> 20) + MOST_AT_ONCE):
            socket.send(picture)
        assert time.monotonic() - began > FLOOD_S - 1


def test_hundreds_of_streams_opened_and_cancelled_leave_nobody_behind(stub: Stub, bystander: pb.Session) -> None:
    for number in range(200):
        call = stub.Watch(pb.WatchRequest(session_id=bystander.id, from_frame=0), timeout=20)
        if number % 2:
            next(call)
        call.cancel()
    end = described(stub, bystander).current_start_frame + 12
    chunks(watch(stub, bystander, None), end)
    # The bystander's own stream, and the one that has just been dropped or not yet.
    until = time.monotonic() + 60
    while (viewers := described(stub, bystander).viewers) > 2:
        assert time.monotonic() < until, viewers
        time.sleep(0.2)


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_bytes_that_are_no_message_are_refused(server: Server, stub: Stub, method: Any) -> None:
    refused = code_of(lambda: send_bytes(server, method, b"\x0a\xff\xff"))
    assert refused is grpc.StatusCode.INVALID_ARGUMENT


def test_a_session_with_hundreds_of_long_cues_can_be_read_and_watched_by_any_client(
    server: Server, stub: Stub
) -> None:
    cues = [cue("x" * 9_800, 12 * number) for number in range(450)]
    session = stub.CreateSession(pb.CreateSessionRequest(options=pb.SessionOptions(fps=0), cues=cues))
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        plain = sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
        found = plain.GetSession(pb.GetSessionRequest(session_id=session.id))
        state = next(iter(plain.Watch(pb.WatchRequest(session_id=session.id), timeout=20))).state
        page = plain.ListPendingCues(pb.ListPendingCuesRequest(session_id=session.id, page_size=1000))
    assert (found.pending_count, state.pending_count) == (450, 450)
    assert (page.pending[0].frame, bool(page.next_page_token)) == (0, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (pb.SessionOptions(height=4096, width=4096), "at most 921600"),
        (pb.SessionOptions(height=-16, width=16), "height"),
        (pb.SessionOptions(height=50), "50 is no multiple of 16"),
        (pb.SessionOptions(fps=1000), "fps is 1000"),
        (pb.SessionOptions(ahead=-1), "ahead is -1"),
        (pb.SessionOptions(model="../../etc/passwd"), "is not loaded here"),
    ],
)
def test_a_session_that_cannot_be_made_is_refused_in_words(
    stub: Stub, options: pb.SessionOptions, words: str
) -> None:
    with pytest.raises(grpc.RpcError, match=words) as refusal:
        stub.CreateSession(pb.CreateSessionRequest(options=options))
    assert refusal.value.code() in ABOUT_THE_REQUEST
    assert len(stub.ListSessions(pb.ListSessionsRequest()).sessions) == 0


def test_a_giant_prompt_is_refused_and_the_largest_one_taken(stub: Stub, bystander: pb.Session) -> None:
    session = create(stub)

    def schedule(text: str) -> grpc.StatusCode | None:
        request = pb.SchedulePromptRequest(session_id=session.id, cue=cue(text, 0))
        return code_of(lambda: stub.SchedulePrompt(request))

    assert schedule("x" * 3_000_000) is grpc.StatusCode.INVALID_ARGUMENT
    assert schedule("balloon " * 1250) is None
    start(stub, session)
    assert frames_of(chunks(watch(stub, session), 21)) == list(range(21))


def test_a_flood_of_commands_is_answered_and_disturbs_nobody(stub: Stub, bystander: pb.Session) -> None:
    session = create(stub)
    commands = [pb.Command(id=str(n), schedule_prompt=cue(NIGHT, 10 + n)) for n in range(200)]
    attach = pb.Command(id="attach", attach=pb.Attach(session_id=session.id))
    call = stub.Interact(iter([attach, *commands, pb.Command(id="last", resume=pb.Resume())]), timeout=60)
    receipts = []
    for event in call:
        receipts += [event.receipt] if event.HasField("receipt") else []
        if event.receipt.command_id == "last":
            break
    call.cancel()
    accepted = {receipt.command_id for receipt in receipts if receipt.stage == pb.RECEIPT_STAGE_ACCEPTED}
    assert len(described(stub, session).pending) == 201
    assert len(accepted) > 100


def test_sessions_that_are_opened_and_dropped_leave_no_slot(stub: Stub) -> None:
    for _ in range(4):
        sessions = [create(stub) for _ in range(SLOTS)]
        assert code_of(lambda: create(stub)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        for session in sessions:
            stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def scheduled(name: str, frame: int | None) -> pb.SchedulePromptRequest:
    return pb.SchedulePromptRequest(session_id=name, cue=cue(NIGHT, frame))


ACTIONS: dict[str, Callable[[Stub, str, int], object]] = {
    "schedule": lambda stub, name, n: stub.SchedulePrompt(scheduled(name, n)),
    "now": lambda stub, name, n: stub.SchedulePrompt(scheduled(name, None)),
    "remove": lambda stub, name, n: stub.RemovePrompt(pb.RemovePromptRequest(session_id=name, frame=n)),
    "move": lambda stub, name, n: stub.MovePrompt(pb.MovePromptRequest(session_id=name, frame=n, to_frame=n + 9)),
    "start": lambda stub, name, n: stub.Start(pb.StartRequest(session_id=name)),
    "pause": lambda stub, name, n: stub.Pause(pb.PauseRequest(session_id=name)),
    "pause at": lambda stub, name, n: stub.Pause(pb.PauseRequest(session_id=name, frame=n)),
    "resume": lambda stub, name, n: stub.Resume(pb.ResumeRequest(session_id=name)),
    "reset": lambda stub, name, n: stub.Reset(pb.ResetRequest(session_id=name)),
    "fork": lambda stub, name, n: stub.ForkSession(pb.ForkSessionRequest(session_id=name, frame=min(n, 60))),
    "snapshot": lambda stub, name, n: stub.SnapshotSession(pb.SnapshotSessionRequest(session_id=name)),
    "record": lambda stub, name, n: stub.StartRecording(pb.StartRecordingRequest(session_id=name)),
}


@settings(max_examples=4, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(sorted(ACTIONS)), st.integers(-3, 90)), min_size=5, max_size=15))
def test_whatever_is_asked_in_whatever_state_is_done_or_refused(stub: Stub, asked: list[tuple[str, int]]) -> None:
    session = create(stub, fps=16, ahead=2)
    for action, frame in asked:
        refused = code_of(partial(ACTIONS[action], stub, session.id, frame))
        assert refused is None or refused in ABOUT_THE_REQUEST, f"{action} at {frame}: {refused}"
    found = described(stub, session)
    frames = [pending.frame for pending in found.pending]
    assert frames == sorted(set(frames))
    for left in stub.ListSessions(pb.ListSessionsRequest()).sessions:
        stub.DeleteSession(pb.DeleteSessionRequest(session_id=left.id))
