"""The Serve config that the chart makes, served by a real Ray cluster in the environment of the chart's pods."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from benchmarks.harness.chart import Chart
from benchmarks.harness.ray_head import GROUPS, TWO, VALUES, Operated, operated
from benchmarks.harness.viewer import watched
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.scenes import playing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(chart: Chart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    rendered = chart.render(*VALUES)
    # Ray puts sockets there, whose names may not be long.
    folder = tmp_path_factory.mktemp("r")
    with operated(rendered, folder, GROUPS) as found:
        found.put(rendered)
        found.wait_until_running()
        yield found


@pytest.fixture
def stub(server: Operated) -> Iterator[sessions_pb2_grpc.SessionsStub]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]


def ending(stub: sessions_pb2_grpc.SessionsStub, session: pb.Session) -> pb.StreamEndReason:
    """What a client that does not come again is told as its stream ends."""
    events = stub.Watch(pb.WatchRequest(session_id=session.id, from_frame=0))
    return next(event.end.reason for event in events if event.HasField("end"))


def test_another_denoiser_joins_and_no_session_notices(
    chart: Chart, server: Operated, stub: sessions_pb2_grpc.SessionsStub
) -> None:
    session, before = playing(stub), server.replicas("Denoiser")

    (viewer,) = asyncio.run(watched(server.grpc, lambda: server.scale(chart.render(*TWO), 2), session))
    assert (viewer.is_whole(), viewer.resumed) == (True, [])
    assert before < server.replicas("Denoiser")
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"slotz": 3}, "there is no setting slotz"),
        ({"denoisers": 3}, "denoisers is no setting of an application; say it by num_replicas"),
        ({"model": "longlive-1.3b", "models_dir": "/nowhere"}, "/nowhere/longlive-1.3b"),
    ],
    ids=["unknown", "elsewhere", "no weights"],
)
def test_a_config_that_cannot_be_served_is_said_and_the_server_goes_on(
    chart: Chart, server: Operated, stub: sessions_pb2_grpc.SessionsStub, args: dict[str, Any], words: str
) -> None:
    server.scale(chart.render(*TWO), 2)
    session = playing(stub)
    server.put(chart.render(*TWO), **args)
    server.wait_for(lambda: words in json.dumps(server.application))
    server.put(chart.render(*TWO))
    server.wait_until_running()
    assert stub.GetSession(pb.GetSessionRequest(session_id=session.id)).state == pb.SESSION_STATE_RUNNING
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def test_a_changed_setting_replaces_every_replica_and_loses_no_frame(
    chart: Chart, server: Operated, stub: sessions_pb2_grpc.SessionsStub
) -> None:
    server.scale(chart.render(*TWO), 2)
    session, other = playing(stub), chart.render(*TWO, "server.slots=3")
    with ThreadPoolExecutor(1) as threads:
        told = threads.submit(ending, stub, session)
        (viewer,) = asyncio.run(watched(server.grpc, lambda: server.replace(other), session))
        assert told.result(timeout=60) == pb.STREAM_END_REASON_MOVED, "by its manager, which went as well"
    assert viewer.is_whole()
    assert {moved.kind for moved in viewer.resumed} == {pb.RESUME_KIND_EXACT}
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def test_replicas_that_are_not_needed_any_more_go_when_their_sessions_have_moved(
    chart: Chart, server: Operated, stub: sessions_pb2_grpc.SessionsStub
) -> None:
    three, one = chart.render(*VALUES, "replicas.denoisers=3"), chart.render(*VALUES)
    server.scale(three, 3)
    sessions = [playing(stub) for _ in range(2)]

    for viewer in asyncio.run(watched(server.grpc, lambda: server.scale(one, 1), *sessions)):
        assert viewer.is_whole()
        assert {moved.kind for moved in viewer.resumed} <= {pb.RESUME_KIND_EXACT}
    for found in sessions:
        stub.DeleteSession(pb.DeleteSessionRequest(session_id=found.id))
