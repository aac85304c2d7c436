"""Three hosts with the stages spread over them, and busy: one is drained, and another one lost meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from benchmarks.harness.host_cluster import DRAIN_S, HostCluster
from benchmarks.harness.namespaces import Host, Hosts, why_not
from benchmarks.harness.viewer import BEFORE, Viewer, reach
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.scenes import create, described, start

pytestmark = pytest.mark.slow

SESSIONS = 8
FPS = 4
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
    # Ray puts sockets there, whose names may not be long.
    folder = tmp_path_factory.mktemp("r")
    with Hosts() as hosts:
        yield HostCluster(hosts, folder, 3, json.dumps(SPREAD))


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
            draining = tasks.create_task(asyncio.to_thread(cluster.drain, drained))
            await asyncio.sleep(1.5)
            kill(cluster, lost)
            print(f"drained in {(drained_s := await draining):.1f} s")
            assert drained_s < DRAIN_S, "it was not empty by then"
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
