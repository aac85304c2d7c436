"""Clients that HAProxy leads to the managers, as in the chart: they stream, leave, and outlive what is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration

from benchmarks.harness.chart import Chart
from benchmarks.harness.ray_head import GROUPS, TWO, Operated, operated
from benchmarks.harness.replicas import replicas
from benchmarks.harness.viewer import watched
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from serving.protocol.status import reason_in
from tests.serving.live.scenes import NOON, chunks, cue, playing, start, watch

pytestmark = pytest.mark.slow

LEASE_S = 2
VALUES = (*TWO, "proxy=haproxy")

Stub = sessions_pb2_grpc.SessionsStub


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Ray puts sockets there, whose names may not be long.
    return tmp_path_factory.mktemp("h")


@pytest.fixture(scope="module")
def server(chart: Chart, logs: Path) -> Iterator[Operated]:
    rendered = chart.render(*VALUES)
    with operated(rendered, logs, GROUPS) as found:
        found.put(rendered)
        found.wait_until_running()
        found.wait_for(lambda: len(found.replicas("Denoiser")) == len(found.replicas("SessionManager")) == 2)
        yield found


@pytest.fixture
def stub(server: Operated) -> Iterator[Stub]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield Stub(channel)  # type: ignore[no-untyped-call]


def refusal(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value


def test_haproxy_is_what_clients_call(server: Operated) -> None:
    port, here = server.ports["grpc"], psutil.Process().children(recursive=True)
    listening = {one.name() for one in here for at in one.net_connections() if at.laddr[1:] == (port,)}
    assert listening == {"haproxy"}


def test_a_client_that_leaves_leaves_its_session_to_its_lease(stub: Stub) -> None:
    options = pb.SessionOptions(fps=16, lease=Duration(seconds=LEASE_S))
    session = stub.CreateSession(pb.CreateSessionRequest(options=options, cues=[cue(NOON, 0)]))
    start(stub, session)
    seeing = watch(stub, session)
    chunks(seeing, 21 + 16 * LEASE_S)
    seeing.cancel()  # type: ignore[attr-defined]
    asked, until = pb.GetSessionRequest(session_id=session.id), time.monotonic() + 30
    while session.id in [found.id for found in stub.ListSessions(pb.ListSessionsRequest()).sessions]:
        assert time.monotonic() < until
        time.sleep(0.2)
    gone = refusal(lambda: stub.GetSession(asked))
    assert (gone.code(), reason_in(gone.trailing_metadata())) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")


@pytest.mark.parametrize("deployment", ["Denoiser", "SessionManager"])
def test_no_frame_is_lost_with_a_replica_that_is_killed(
    server: Operated, stub: Stub, logs: Path, deployment: str
) -> None:
    session = playing(stub)

    def hurt() -> None:
        asked = pb.GetSessionRequest(session_id=session.id)
        lost = {stub.GetSession(asked).replica} if deployment == "Denoiser" else server.replicas(deployment)
        for found in replicas(logs / "session_latest" / "logs" / "serve"):
            if found.id in lost:
                os.kill(found.pid, signal.SIGKILL)
        server.wait_for(lambda: len(server.replicas(deployment) - lost) >= 1)
        server.wait_for(lambda: len(server.replicas(deployment)) == 2)

    (viewer,) = asyncio.run(watched(server.grpc, hurt, session))
    assert viewer.is_whole()
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def test_a_changed_setting_replaces_every_replica_and_loses_no_frame(
    chart: Chart, server: Operated, stub: Stub
) -> None:
    session, other = playing(stub), chart.render(*VALUES, "server.slots=3")
    (viewer,) = asyncio.run(watched(server.grpc, lambda: server.replace(other), session))
    assert viewer.is_whole()
    assert {moved.kind for moved in viewer.resumed} == {pb.RESUME_KIND_EXACT}
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))
