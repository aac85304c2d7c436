"""Several hosts, one denoiser on each: what a lost link does to the sessions behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from benchmarks.measure.replicas import Replica, replicas
from serving.deployments import local_cluster
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.hosts_app import FIRST_HOST, OTHER_HOSTS
from tests.serving.live.scenes import create, described, frames, playing, seen_by_client
from tests.support.namespaces import Host, Hosts, why_not

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[3]
DENOISERS = 3
GRPC_PORT, RAY_PORT = 9000, 6379
START_S = 180.0
GIVEN_UP_S = 60.0
END = 201
GIVE_UP = {"period_ms": "1000", "timeout_ms": "2000", "failure_threshold": "5", "initial_delay_ms": "2000"}
"""When Ray gives a host up: after 5 s at the least. By default it takes half a minute."""


class Cluster:
    """Ray on several hosts, and the server in it."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self._hosts = hosts
        self._folder = folder
        self._environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Every host of this cluster has it, and nobody else.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            **local_cluster.ENVIRONMENT,
            **{f"RAY_health_check_{name}": value for name, value in GIVE_UP.items()},
        }
        self._started: list[subprocess.Popen[str]] = []
        self.said: list[str] = []
        first = hosts.add("first")
        self._address = f"{first.address}:{RAY_PORT}"
        head = ("--head", f"--port={RAY_PORT}", "--include-dashboard=false", f"--temp-dir={folder}")
        self._ray(first, FIRST_HOST, *head)
        for number in range(DENOISERS):
            self.join(f"other{number}")
        command = (
            sys.executable,
            "-m",
            "tests.serving.live.hosts_app",
            self._address,
            str(DENOISERS),
            str(GRPC_PORT),
        )
        server = first.popen(command, env=self._environment, stdout=subprocess.PIPE)
        self._started.append(server)
        threading.Thread(target=self._listen, args=(server,), daemon=True).start()
        self.wait_for(lambda: self.is_whole and self.hosts == 1 + DENOISERS, START_S)
        self.address = f"{first.address}:{GRPC_PORT}"

    def join(self, name: str) -> Host:
        """Another host for one denoiser."""
        host = self._hosts.add(name)
        self._ray(host, OTHER_HOSTS, f"--address={self._address}")
        return host

    @property
    def is_whole(self) -> bool:
        """Whether all replicas are there, as far as Serve knows."""
        statuses = [line for line in self.said if "whole" in line]
        return statuses[-1:] == ["whole"]

    @property
    def hosts(self) -> int:
        """How many Ray counts."""
        counts = [int(line.split()[1]) for line in self.said if line.startswith("hosts")]
        return counts[-1] if counts else 0

    def denoisers(self) -> dict[str, Replica]:
        """By their ids in Serve."""
        logs = self._folder / "session_latest" / "logs" / "serve"
        return {found.id: found for found in replicas(logs) if found.deployment == "Denoiser"}

    def host_of(self, session: pb.Session) -> Host:
        """Where a session's denoiser is."""
        return self._hosts.of(self.denoisers()[session.replica].pid)

    def wait_for(self, is_so: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not is_so():
            ended = [process.args for process in self._started if process.poll() is not None]
            assert not ended, f"it has ended: {ended}"
            assert time.monotonic() < until, f"not within {seconds:g} s; the server said {self.said}"
            time.sleep(0.2)

    def _ray(self, host: Host, kind: str, *options: str) -> None:
        """Start Ray on a host. Two at once would take the same names for sockets in their folder."""
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *options),
            *(f"--node-ip-address={host.address}", f'--resources={{"{kind}": 1}}'),
            *("--num-cpus=4", "--object-store-memory=100000000"),
        ]
        log = self._folder / f"{host.name}.log"
        with log.open("w") as output:
            ray = host.popen(command, env=self._environment, stdout=output, stderr=subprocess.STDOUT)
        self._started.append(ray)
        self.wait_for(lambda: "Ray runtime started" in log.read_text(), START_S)

    def _listen(self, server: subprocess.Popen[str]) -> None:
        assert server.stdout is not None
        self.said.extend(line.strip() for line in server.stdout)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Hosts() as hosts:
        yield Cluster(hosts, tmp_path_factory.mktemp("ray"))


@pytest.fixture
def stub(cluster: Cluster) -> Iterator[sessions_pb2_grpc.SessionsStub]:
    with grpc.insecure_channel(cluster.address) as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
        yield stub
        for session in stub.ListSessions(pb.ListSessionsRequest()).sessions:
            stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def moved(events: list[pb.Event]) -> bool:
    return any(event.HasField("resumed") for event in events)


def copies(stub: sessions_pb2_grpc.SessionsStub, session: pb.Session) -> int:
    """How many denoisers say that they are the one that has the session."""
    listed = stub.ListSessions(pb.ListSessionsRequest()).sessions
    return Counter(found.id for found in listed)[session.id]


def test_each_session_is_on_a_host_of_its_own(cluster: Cluster, stub: sessions_pb2_grpc.SessionsStub) -> None:
    sessions = [create(stub, seed=number) for number in range(DENOISERS)]
    assert len({cluster.host_of(session).name for session in sessions}) == DENOISERS


def test_a_link_that_is_down_for_three_seconds_costs_no_frame(
    cluster: Cluster, stub: sessions_pb2_grpc.SessionsStub
) -> None:
    session = playing(stub)
    cut, shown = cluster.host_of(session), list[int]()

    def count_copies() -> None:
        for _ in range(8):
            with contextlib.suppress(grpc.RpcError):
                shown.append(copies(stub, session))
            time.sleep(1)

    reconnecting, counting = threading.Timer(3, cut.reconnect), threading.Thread(target=count_copies)

    def hurt() -> None:
        cut.cut_off()
        reconnecting.start()
        counting.start()

    events = asyncio.run(seen_by_client(cluster.address, session, END, hurt))
    counting.join()
    assert frames(events) == list(range(END))
    assert moved(events)
    assert max(shown) == 1
    assert cluster.hosts == 1 + DENOISERS
    assert copies(stub, session) == 1


def test_sessions_of_a_host_that_is_given_up_go_on_elsewhere_and_a_new_host_takes_its_place(
    cluster: Cluster, stub: sessions_pb2_grpc.SessionsStub
) -> None:
    cluster.wait_for(lambda: cluster.is_whole, GIVEN_UP_S)
    session = playing(stub)
    lost = cluster.host_of(session)
    events = asyncio.run(seen_by_client(cluster.address, session, END, lost.cut_off))
    assert frames(events) == list(range(END))
    assert moved(events)
    cluster.wait_for(lambda: cluster.hosts == DENOISERS, GIVEN_UP_S)
    assert cluster.host_of(described(stub, session)).name != lost.name
    new = cluster.join("new")
    cluster.wait_for(lambda: cluster.hosts == 1 + DENOISERS, GIVEN_UP_S)
    cluster.wait_for(lambda: cluster.is_whole, START_S)
    lost.reconnect()
    sessions = [session, *(create(stub, seed=number) for number in range(DENOISERS))]
    assert new.name in {cluster.host_of(described(stub, found)).name for found in sessions}
    assert copies(stub, session) == 1
