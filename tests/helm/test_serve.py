"""The Serve config that the chart makes, served by a real Ray cluster in the environment of the chart's pods."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
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

VALUES = ("insecure=true", "shutdown.replicaSeconds=5", "shutdown.managerSeconds=5", "replicas.managers=2")
GROUPS = {"front": 4, "denoiser": 3}
END = 249
LONGEST_GAP_S = 1.5


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


async def watched(server: Operated, session: pb.Session, change: Callable[[], None]) -> list[tuple[float, int]]:
    """When each frame came to a client, under which something changes once some have come."""
    came: list[tuple[float, int]] = []
    async with AsyncClient(server.grpc) as client, aclosing(client.watch(session.id, 0)) as events:
        async for event in events:
            if not event.HasField("chunk"):
                continue
            came += [(time.monotonic(), unit.frame) for unit in event.chunk.units]
            if event.chunk.first_frame == 33:
                await asyncio.to_thread(change)
            if came[-1][1] >= END - 1:
                return came
    raise AssertionError("the stream ended")


def gap(came: list[tuple[float, int]]) -> float:
    """The longest time without a frame, in seconds."""
    return max(after - before for (before, _), (after, _) in itertools.pairwise(came))


def test_another_denoiser_joins_and_no_session_notices(
    chart: Chart, server: Operated, stub: sessions_pb2_grpc.SessionsStub
) -> None:
    session, before = playing(stub), server.replicas("Denoiser")
    more = chart.render(*VALUES, "replicas.denoisers=2")
    came = asyncio.run(watched(server, session, lambda: server.put(more)))
    assert [frame for _, frame in came] == list(range(END))
    assert gap(came) < LONGEST_GAP_S
    server.wait_for(lambda: len(server.replicas("Denoiser")) == 2)
    assert before < server.replicas("Denoiser")
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def test_a_changed_setting_replaces_every_replica_and_loses_no_frame(
    chart: Chart, server: Operated, stub: sessions_pb2_grpc.SessionsStub
) -> None:
    server.put(chart.render(*VALUES, "replicas.denoisers=2"))
    server.wait_for(lambda: len(server.replicas("Denoiser")) == 2)
    session, before = playing(stub), server.replicas("Denoiser") | server.replicas("SessionManager")
    changed = chart.render(*VALUES, "replicas.denoisers=2", "server.slots=3")
    came = asyncio.run(watched(server, session, lambda: server.put(changed)))
    assert [frame for _, frame in came] == list(range(END))
    server.wait_until_running()
    assert not before & (server.replicas("Denoiser") | server.replicas("SessionManager"))
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
    session = playing(stub)
    server.put(chart.render(*VALUES), **args)
    server.wait_for(lambda: words in json.dumps(server.application))
    server.put(chart.render(*VALUES))
    server.wait_until_running()
    assert stub.GetSession(pb.GetSessionRequest(session_id=session.id)).state == pb.SESSION_STATE_RUNNING
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))
