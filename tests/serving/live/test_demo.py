"""The demonstration, on a server that runs already."""

from __future__ import annotations

import asyncio
from pathlib import Path

from serving.cli.demo import STEERED, STILLS, both, stills
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.conftest import Server


def test_two_sessions_are_shown_at_once_and_one_is_steered_through_every_prompt(
    server: Server, stub: sessions_pb2_grpc.SessionsStub, tmp_path: Path
) -> None:
    steered, followed = asyncio.run(both(server.address, tmp_path, span=12))
    assert [cue.cue.prompts[0].text for cue in steered.playback.applied] == list(STEERED)
    assert [cue.frame for cue in steered.playback.applied[1:]] == [switch.frame for switch in steered.switches]
    assert len(stills(steered)) == len(stills(followed)) == STILLS
    assert "none missing and none twice" in str(followed)
    assert str(steered).count("to be seen") == len(STEERED) - 1
    assert not stub.ListSessions(pb.ListSessionsRequest()).sessions
