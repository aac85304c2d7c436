"""A server that has too much to do: whom it refuses, in which words, and what those hear who are there.

The pictures and paces are such that no processor of today can serve two of them.
"""

from __future__ import annotations

import json
import urllib.request

import grpc
import pytest

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from serving.protocol.status import reason_in
from tests.serving.live.conftest import Server
from tests.serving.live.scenes import NOON, cue, described, start, watch

Stub = sessions_pb2_grpc.SessionsStub


def opened(stub: Stub, fps: int, height: int = 0, width: int = 0) -> pb.Session:
    options = pb.SessionOptions(seed=7, fps=fps, height=height, width=width)
    session: pb.Session = stub.CreateSession(pb.CreateSessionRequest(options=options, cues=[cue(NOON, 0)]))
    return session


@pytest.mark.parametrize(
    ("there", "asked", "words"),
    [
        ((60, 160, 240), (60, 96, 160), "has no time for 60 frames/s of 96x160: to generate a block takes"),
        ((60, 96, 160), (0, 160, 240), "has no time for an unpaced session of 160x240: a block of another one"),
        ((0, 160, 240), (60, 96, 160), "has no time for 60 frames/s of 96x160: a block of this one would wait"),
    ],
)
def test_who_cannot_be_served_in_time_beside_the_others_is_told_why(
    stub: Stub, there: tuple[int, int, int], asked: tuple[int, int, int], words: str
) -> None:
    session = opened(stub, *there)
    with pytest.raises(grpc.RpcError) as refusal:
        opened(stub, *asked)
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_in(refusal.value.trailing_metadata()) == "SLOTS_FULL"
    details = str(refusal.value.details())
    assert words in details
    assert details.endswith(("would fit", "nothing fits until one of them ends"))
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))
    opened(stub, *asked)


def test_who_is_alone_and_still_too_slow_is_told_the_pace_that_is_held(stub: Stub) -> None:
    session = opened(stub, 60, 160, 240)
    start(stub, session)
    slowed = next(event.slowed for event in watch(stub, session) if event.HasField("slowed"))
    assert 0 < slowed.held_fps < 60
    assert slowed.reason.startswith("the replica has too much to do for 60 frames/s")
    assert 0 < described(stub, session).held_fps < 60


def test_a_server_says_what_it_generates(server: Server, stub: Stub) -> None:
    found = stub.DescribeServer(pb.DescribeServerRequest())
    assert (found.model, found.other_sizes, found.max_fps, found.default_fps) == ("pocket", True, 60, 16)
    assert [(size.height, size.width) for size in found.sizes] == [(96, 160)]
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/server.json") as answer:
        assert json.load(answer)["sizes"] == [{"height": 96, "width": 160}]
