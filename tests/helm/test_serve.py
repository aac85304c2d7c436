"""The Serve config that the chart makes, served by a real Ray cluster in the environment of the chart's pods."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from serving.client.aio import AsyncClient
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.helm.conftest import Chart
from tests.helm.operator import Operated, operated
from tests.serving.live.scenes import playing

pytestmark = pytest.mark.slow

VALUES = ("insecure=true", "shutdown.replicaSeconds=60", "shutdown.managerSeconds=90", "replicas.managers=2")
TWO = (*VALUES, "replicas.denoisers=2")
GROUPS = {"front": 4, "denoiser": 3}
END = 249
LATER = 1449
"""The frame that is shown when every replica has been replaced."""


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


async def watched(server: Operated, session: pb.Session, change: Callable[[], None], end: int = END) -> list[int]:
    """The frames that come to a client, under which something changes once some have come."""
    came: list[int] = []
    async with asyncio.timeout(300), AsyncClient(server.grpc) as client:
        async for event in client.watch(session.id, 0):
            if not event.HasField("chunk"):
                continue
            came += [unit.frame for unit in event.chunk.units]
            if event.chunk.first_frame == 33:
                await asyncio.to_thread(change)
            if came[-1] >= end - 1:
                return came
    raise AssertionError("the stream ended")


def test_another_denoiser_joins_and_no_session_notices(
    chart: Chart, server: Operated, stub: sessions_pb2_grpc.SessionsStub
) -> None:
    session, before = playing(stub), server.replicas("Denoiser")
    more = chart.render(*TWO)
    came = asyncio.run(watched(server, session, lambda: server.put(more)))
    assert came == list(range(END))
    server.wait_for(lambda: len(server.replicas("Denoiser")) == 2)
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
    server.put(chart.render(*TWO))
    server.wait_for(lambda: len(server.replicas("Denoiser")) == 2)
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
    server.put(chart.render(*TWO))
    server.wait_for(lambda: len(server.replicas("Denoiser")) == 2)
    session, before = playing(stub), server.replicas("Denoiser") | server.replicas("SessionManager")
    changed = chart.render(*TWO, "server.slots=3")
    came = asyncio.run(watched(server, session, lambda: server.put(changed), LATER))
    assert came == list(range(LATER))
    server.wait_until_running()
    assert not before & (server.replicas("Denoiser") | server.replicas("SessionManager"))
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))
