"""Three hosts with the stages spread over them, and busy: one is drained, and another one lost meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import pytest

from serving.client.aio import AsyncClient
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.host_cluster import HostCluster
from tests.serving.live.scenes import create, described, start
from tests.support.namespaces import Host, Hosts, why_not

pytestmark = pytest.mark.slow

SESSIONS = 8
FPS = 4
DEADLINE_S = 240
"""When Ray ends a host that is being drained, whatever is on it still: as the chart has it."""
BEFORE = 33
AFTER = 24
"""Frames that are watched once a host is gone."""

SPREAD = {
    "stages": "separate", "denoisers": 2, "decoders": 2, "text_encoders": 1, "slots": SESSIONS,
    "decoder_slots": 2 * SESSIONS,
}  # fmt: skip


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    drain = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DEADLINE_S)}
    # Ray puts sockets there, whose names may not be long.
    folder = tmp_path_factory.mktemp("r")
    with Hosts() as hosts:
        yield HostCluster(hosts, folder, 3, json.dumps(SPREAD), environment=drain)


@contextmanager
def busy_machine() -> Iterator[None]:
    """Two other programs want all the time that there is."""
    others = [subprocess.Popen((sys.executable, "-c", "while True: pass")) for _ in range(2)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@dataclass
class Viewer:
    """A client of a session, and what came to it."""

    session: pb.Session
    frames: list[int] = field(default_factory=list)
    resumed: list[pb.Resumed] = field(default_factory=list)
    longest_wait_s: float = 0.0

    async def watch(self, address: str) -> None:
        last = time.monotonic()
        async with AsyncClient(address) as client:
            async for event in client.watch(self.session.id, 0):
                self.resumed += [event.resumed] if event.HasField("resumed") else []
                if event.HasField("chunk"):
                    self.frames += [unit.frame for unit in event.chunk.units]
                    self.longest_wait_s = max(self.longest_wait_s, time.monotonic() - last)
                    last = time.monotonic()

    def is_whole(self) -> bool:
        """Whether no frame is missing and none came twice."""
        return self.frames == list(range(len(self.frames)))


async def reach(viewers: list[Viewer], frame: int) -> None:
    async with asyncio.timeout(200):
        while min(len(viewer.frames) for viewer in viewers) < frame:
            await asyncio.sleep(0.1)


async def gone(cluster: HostCluster, host: Host) -> float:
    """Drain a host by ending its Ray as a pod is ended; how long that took, in seconds."""
    ray, began = cluster.ray_of(host), time.monotonic()
    ray.terminate()
    async with asyncio.timeout(DEADLINE_S + 30):
        while ray.poll() is None:
            await asyncio.sleep(0.1)
    return time.monotonic() - began


def kill(cluster: HostCluster, host: Host) -> None:
    cluster.ray_of(host)
    for pid in host.pids:
        os.kill(pid, signal.SIGKILL)


def test_a_host_is_drained_and_another_one_lost_meanwhile_and_no_frame_is_lost(cluster: HostCluster) -> None:
    with grpc.insecure_channel(cluster.address) as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
        sessions = [create(stub, seed=number, fps=FPS, ahead=1) for number in range(SESSIONS)]
        for session in sessions:
            start(stub, session)
        there = Counter(cluster.host_of(described(stub, session)).name for session in sessions)
    drained, lost, _ = sorted(cluster.others, key=lambda host: there[host.name], reverse=True)

    async def hurt() -> list[Viewer]:
        viewers = [Viewer(session) for session in sessions]
        async with asyncio.TaskGroup() as tasks:
            watching = [tasks.create_task(viewer.watch(cluster.address)) for viewer in viewers]
            await reach(viewers, BEFORE)
            draining = tasks.create_task(gone(cluster, drained))
            await asyncio.sleep(1.5)
            kill(cluster, lost)
            print(f"drained in {(drained_s := await draining):.1f} s")
            assert drained_s < DEADLINE_S, "it was not empty by then"
            await reach(viewers, max(len(viewer.frames) for viewer in viewers) + AFTER)
            for task in watching:
                task.cancel()
        return viewers

    with busy_machine():
        viewers = asyncio.run(hurt())
    for viewer in viewers:
        kinds = [pb.ResumeKind.Name(moved.kind) for moved in viewer.resumed]
        print(f"{len(viewer.frames)} frames, longest wait {viewer.longest_wait_s:.2f} s, {kinds}")
        assert viewer.is_whole()
