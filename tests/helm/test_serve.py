"""The Serve config that the chart makes, served by a real Ray cluster in the environment of the chart's pods."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
MORE = 120
"""Frames that are watched once everything has changed."""


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


@dataclass
class Seen:
    """What a client saw from its first frame on, and the longest time that it waited for a chunk, in seconds."""

    frames: list[int] = field(default_factory=list)
    resumed: list[pb.Resumed] = field(default_factory=list)
    longest_wait_s: float = 0.0

    def take(self, event: pb.Event, waited_s: float) -> None:
        self.frames += [unit.frame for unit in event.chunk.units]
        self.resumed += [event.resumed] if event.HasField("resumed") else []
        self.longest_wait_s = max(self.longest_wait_s, waited_s)

    def whole(self) -> bool:
        """Whether no frame is missing and none came twice."""
        return self.frames == list(range(len(self.frames)))


async def watched(server: Operated, session: pb.Session, change: Callable[[], None]) -> Seen:
    """What comes to a client while something changes, and for some time afterwards."""
    seen, changing, last, end = Seen(), None, time.monotonic(), None
    async with asyncio.timeout(400), AsyncClient(server.grpc) as client:
        async for event in client.watch(session.id, 0):
            seen.take(event, time.monotonic() - last)
            if not event.HasField("chunk"):
                continue
            last = time.monotonic()
            if changing is None and seen.frames[-1] > 33:
                changing = asyncio.create_task(asyncio.to_thread(change))
            if end is None and changing is not None and changing.done():
                changing.result()
                end = seen.frames[-1] + MORE
            if end is not None and seen.frames[-1] >= end:
                print(f"longest wait for a chunk: {seen.longest_wait_s:.2f} s, {seen.resumed}")
                return seen
    raise AssertionError("the stream ended")


def test_another_denoiser_joins_and_no_session_notices(
    chart: Chart, server: Operated, stub: sessions_pb2_grpc.SessionsStub
) -> None:
    session, before = playing(stub), server.replicas("Denoiser")

    def more() -> None:
        server.put(chart.render(*TWO))
        server.wait_for(lambda: len(server.replicas("Denoiser")) == 2)

    seen = asyncio.run(watched(server, session, more))
    assert (seen.whole(), seen.resumed) == (True, [])
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

    def replicas() -> set[str]:
        return server.all_replicas("Denoiser", "SessionManager")

    session, before = playing(stub), replicas()

    def change() -> None:
        server.put(chart.render(*TWO, "server.slots=3"))
        server.wait_for(lambda: len(replicas() - before) == len(replicas()) == 4)

    seen = asyncio.run(watched(server, session, change))
    assert seen.whole()
    assert {moved.kind for moved in seen.resumed} == {pb.RESUME_KIND_EXACT}
    server.wait_until_running()
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def test_replicas_that_are_not_needed_any_more_go_when_their_sessions_have_moved(
    chart: Chart, server: Operated, stub: sessions_pb2_grpc.SessionsStub
) -> None:
    three, one = chart.render(*VALUES, "replicas.denoisers=3"), chart.render(*VALUES)
    server.put(three)
    server.wait_for(lambda: len(server.replicas("Denoiser")) == 3)
    sessions = [playing(stub) for _ in range(2)]

    def fewer() -> None:
        server.put(one)
        server.wait_for(lambda: len(server.all_replicas("Denoiser")) == 1)

    async def watch_both() -> list[Seen]:
        return await asyncio.gather(*(watched(server, found, fewer) for found in sessions))

    for seen in asyncio.run(watch_both()):
        assert seen.whole()
        assert {moved.kind for moved in seen.resumed} <= {pb.RESUME_KIND_EXACT}
    for found in sessions:
        stub.DeleteSession(pb.DeleteSessionRequest(session_id=found.id))
