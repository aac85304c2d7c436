"""Sessions and clients that come and go leave nothing behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from benchmarks.harness.holdings import Holdings, holdings, rooms
from benchmarks.harness.replicas import joined_server
from serving.config import ServerConfig
from serving.deployments.server_process import free_ports
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.scenes import (
    NOON,
    chunks,
    code_of,
    create,
    cue,
    described,
    frames_of,
    playing,
    settles,
    start,
    watch,
)

pytestmark = pytest.mark.slow

SLOTS = 2
LEASE_S = 5
DOORS = 5 * ("websocket",) + 4 * ("watch",) + 1 * ("interact",)
"""The connections of a client: half of them over the WebSocket. Five controllers may replace one another."""
SOON_S, OPENED_S = 0.01, 1.0
"""In which no session can be opened, and in which any is."""

MORE_MIB, MORE_OF_A_KIND = 40.0, 10
"""What a process may have more than before: pools of threads fill late. One of a session's would be 200."""


class Separate(NamedTuple):
    """A server with one replica of every stage, each in a process of its own."""

    config: ServerConfig
    logs: Path
    stub: sessions_pb2_grpc.SessionsStub

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.config.grpc_port}"

    def create(self) -> pb.Session:
        return create(self.stub, fps=0, ahead=2)

    def delete(self, session: pb.Session) -> None:
        self.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Separate]:
    ports = free_ports()
    config = ServerConfig(
        stages="separate", slots=SLOTS, grpc_port=ports.grpc, http_port=ports.http,
        metrics_port=ports.metrics, recordings=tmp_path_factory.mktemp("recordings"),
    )  # fmt: skip
    with joined_server(config) as running, grpc.insecure_channel(f"127.0.0.1:{config.grpc_port}") as channel:
        yield Separate(config, running.logs, sessions_pb2_grpc.SessionsStub(channel))  # type: ignore[no-untyped-call]
    assert not tracebacks(running.logs)


def come_and_go(server: Separate, sessions: int) -> None:
    """Sessions, one after the other; every tenth is played."""
    for number in range(sessions):
        session = server.create()
        if number % 10 == 0:
            start(server.stub, session)
            chunks(watch(server.stub, session), 21)
        server.delete(session)


def killed_in_mid_stream(server: Separate, session: pb.Session, processes: int, doors: Sequence[str]) -> None:
    """Clients that watch the session, each through all those doors, and are killed as they do."""
    where = [server.address, f"127.0.0.1:{server.config.http_port}", session.id]
    command = [sys.executable, "-m", "tests.serving.live.watching_client", *where, *doors]
    with ExitStack() as stack:
        started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(processes)]
        for client in started:
            stack.enter_context(client)
            stack.callback(client.kill)
        for client in started:
            assert client.stdout is not None
            assert client.stdout.readline() == b"watching\n"
        assert described(server.stub, session).viewers > 0


def is_empty(server: Separate) -> bool:
    return all(room.free == room.of for room in asyncio.run(rooms(server.config, server.logs)))


def leaks(before: list[Holdings], after: list[Holdings]) -> list[str]:
    """What each process has more of than it may."""
    old = {one.pid: one for one in before}
    assert old.keys() == {one.pid for one in after}
    return [
        f"{one.name}: {kind} were {getattr(old[one.pid], kind)} and are {getattr(one, kind)}"
        for one in after
        for kind, more in [
            ("mib", MORE_MIB),
            *((kind, MORE_OF_A_KIND) for kind in ("handles", "sockets", "threads")),
        ]
        if getattr(one, kind) > getattr(old[one.pid], kind) + more
    ]


def test_six_rounds_of_create_play_and_delete_find_every_slot_free(server: Separate) -> None:
    for _ in range(6):
        sessions = [server.create() for _ in range(SLOTS)]
        assert code_of(server.create) is grpc.StatusCode.RESOURCE_EXHAUSTED
        for session in sessions:
            start(server.stub, session)
        for session in sessions:
            assert frames_of(chunks(watch(server.stub, session), 21)) == list(range(21))
        for session in sessions:
            server.delete(session)
    assert settles(lambda: is_empty(server))


def test_two_hundred_sessions_leave_nothing(server: Separate) -> None:
    come_and_go(server, 20)
    before = holdings(server.logs)
    come_and_go(server, 200)
    assert settles(lambda: is_empty(server))
    assert settles(lambda: not leaks(before, holdings(server.logs))), leaks(before, holdings(server.logs))


def tracebacks(logs: Path) -> list[str]:
    """What follows each traceback in the logs of a server, or in what its processes print."""
    files = [*logs.glob("*.log"), *logs.parent.glob("worker-*.err")]
    return [text for file in files for text in file.read_text().split("Traceback")[1:]]


def test_fifty_clients_killed_in_mid_stream_leave_nothing(server: Separate) -> None:
    session = playing(server.stub)
    killed_in_mid_stream(server, session, 1, DOORS)
    assert settles(lambda: described(server.stub, session).viewers == 0)
    before = holdings(server.logs)
    killed_in_mid_stream(server, session, 5, DOORS)
    assert settles(lambda: described(server.stub, session).viewers == 0)
    assert settles(lambda: not leaks(before, holdings(server.logs))), leaks(before, holdings(server.logs))
    server.delete(session)
    assert settles(lambda: is_empty(server))
    assert not tracebacks(server.logs)


def test_a_session_whose_clients_were_killed_ends_with_its_lease(server: Separate) -> None:
    options = pb.SessionOptions(seed=7, lease=Duration(seconds=LEASE_S))
    session = server.stub.CreateSession(pb.CreateSessionRequest(options=options, cues=[cue(NOON, 0)]))
    start(server.stub, session)
    killed_in_mid_stream(server, session, 1, ("interact", "websocket", "watch"))
    # To ask for the session would renew its lease.
    assert settles(lambda: is_empty(server))
    assert code_of(lambda: described(server.stub, session)) is grpc.StatusCode.NOT_FOUND
    assert not tracebacks(server.logs)


def test_a_session_whose_client_gives_up_before_it_can_be_open_is_not_opened(server: Separate) -> None:
    request = pb.CreateSessionRequest(options=pb.SessionOptions(seed=7), cues=[cue(NOON, 0)])
    for _ in range(5):
        code = code_of(lambda: server.stub.CreateSession(request, timeout=SOON_S))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        time.sleep(OPENED_S)
        assert settles(lambda: is_empty(server))
