"""What a running server's sessions see of what operators do to it, and how long that takes.

    python -m benchmarks.operations

By the chart's Serve config: more denoisers and fewer, a setting that replaces every replica, and denoisers that
come as sessions do. On two hosts, which are network namespaces: one that is drained. Here: a manager that is
killed, and how soon its sessions have a copy again, or are gone. A session is paced at 16 frames/s with one block
ahead; where nothing happens a chunk comes every 0.75 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import torch

from benchmarks.measure.machine import RESULTS, Machine
from benchmarks.measure.replicas import Replicas, joined_server, log_lines
from serving.config import ServerConfig
from serving.deployments.server_process import free_ports
from serving.media.whole_file import write_whole
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.helm.conftest import Chart
from tests.helm.operator import Operated, operated
from tests.helm.viewer import GROUPS, VALUES, Seen, watched
from tests.serving.live.host_cluster import HostCluster
from tests.serving.live.scenes import create, described, playing
from tests.serving.live.test_drain import Viewer, gone, reach
from tests.support.namespaces import Hosts

Stub = sessions_pb2_grpc.SessionsStub

LEASE_S = 3.0
SLOTS, MOST = 2, 3
SCALED = (
    "insecure=true", "autoscaling.enabled=true", "autoscaling.downscaleSeconds=3", "shutdown.replicaSeconds=60",
    "shutdown.managerSeconds=90", f"server.slots={SLOTS}", f"autoscaling.denoisers.max={MOST}",
)  # fmt: skip
BEFORE, AFTER = 57, 96
"""Frames that are watched before a host is drained, and once it is gone."""

LOOK_S = 0.05


def until(is_so: Callable[[], bool], seconds: float = 120) -> float:
    """Seconds until something is so. Raises TimeoutError."""
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not so after {seconds:g} s")
        time.sleep(LOOK_S)
    return round(time.monotonic() - began, 2)


@contextmanager
def calling(address: str) -> Iterator[Stub]:
    """The calls of a server."""
    with grpc.insecure_channel(address) as channel:
        yield Stub(channel)  # type: ignore[no-untyped-call]


def seen_as_json(seen: Seen | Viewer) -> dict[str, Any]:
    """What a viewer saw; raises AssertionError where a frame is missing or came twice."""
    assert seen.frames == list(range(len(seen.frames))), "a frame is missing, or came twice"
    kinds = [pb.ResumeKind.Name(moved.kind) for moved in seen.resumed]
    return {"frames": len(seen.frames), "longest_wait_s": round(seen.longest_wait_s, 2), "moves": kinds}


# The chart's Serve config


def changes(chart: Chart, folder: Path) -> dict[str, Any]:
    """A session under config after config."""
    found: dict[str, Any] = {}
    rendered = chart.render(*VALUES)
    with operated(rendered, folder, GROUPS) as server:
        server.put(rendered)
        server.wait_until_running()
        for name, values, is_done in (
            ("a second denoiser", ("replicas.denoisers=2",), lambda: len(server.replicas("Denoiser")) == 2),
            ("a third", ("replicas.denoisers=3",), lambda: len(server.replicas("Denoiser")) == 3),
            ("two fewer", (), lambda: len(server.all_replicas("Denoiser")) == 1),
            ("another setting", ("server.slots=3",), replaced(server)),
        ):
            found[name] = changed(server, chart, values, is_done)
            print(name, found[name], flush=True)
    return found


def replaced(server: Operated) -> Callable[[], bool]:
    """Whether no replica is there any more of those that are there when this is asked first."""
    before: set[str] = set()

    def is_done() -> bool:
        there = server.all_replicas("Denoiser", "SessionManager")
        if not before:
            before.update(there)
        return not before & there and server.application["status"] == "RUNNING"

    return is_done


def changed(
    server: Operated, chart: Chart, values: tuple[str, ...], is_done: Callable[[], bool]
) -> dict[str, Any]:
    """What a session sees of another config, and how long it takes until that is what there is."""
    took: list[float] = []

    def change() -> None:
        is_done()
        server.put(chart.render(*VALUES, *values))
        took.append(until(is_done))

    with calling(server.grpc) as stub:
        session = playing(stub)
        seen = asyncio.run(watched(server, session, change))
        stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))
    return {"done_s": took[0], **seen_as_json(seen)}


def scaling(chart: Chart, folder: Path) -> dict[str, Any]:
    """From when a session comes that leaves too few free slots until there is another denoiser."""
    took, refused = [], 0
    rendered = chart.render(*SCALED)
    with operated(rendered, folder, {"front": 2, "denoiser": MOST}) as server, calling(server.grpc) as stub:
        server.put(rendered)
        server.wait_until_running()
        options = pb.SessionOptions(fps=1)
        options.lease.FromSeconds(1800)
        for count in range(1, SLOTS * MOST):
            try:
                stub.CreateSession(pb.CreateSessionRequest(options=options))
            except grpc.RpcError:
                refused += 1
            wanted = min(MOST, count // SLOTS + 1)
            if len(server.replicas("Denoiser")) < wanted:
                took.append(until(lambda wanted=wanted: len(server.replicas("Denoiser")) >= wanted))  # type: ignore[misc]
    return {"another_denoiser_s": took, "refused": refused}


# Hosts


def drained(folder: Path) -> dict[str, Any]:
    """What a session sees of its host being drained, and how long that takes."""
    patience = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "240"}
    with Hosts() as hosts:
        cluster = HostCluster(hosts, folder, 2, environment=patience)
        with calling(cluster.address) as stub:
            session = playing(stub)
            host = cluster.host_of(described(stub, session))
        viewer = Viewer(session)

        async def drain() -> float:
            watching = asyncio.create_task(viewer.watch(cluster.address))
            await reach([viewer], BEFORE)
            took = await gone(cluster, host)
            await reach([viewer], len(viewer.frames) + AFTER)
            watching.cancel()
            return took

        return {"gone_s": round(asyncio.run(drain()), 2), **seen_as_json(viewer)}


# A manager


def manager_killed(folder: Path) -> dict[str, Any]:
    """After its manager was killed: until another one has a session's copy, and until an abandoned one is gone."""
    ports = free_ports()
    config = ServerConfig(
        managers=2, slots=1, grpc_port=ports.grpc, http_port=ports.http, metrics_port=ports.metrics,
        recordings=folder,
    )  # fmt: skip
    with joined_server(config) as running, calling(f"127.0.0.1:{config.grpc_port}") as stub:

        def copies() -> int:
            lines = log_lines(running.logs, "SessionManager")
            return sum(line["message"] == "standby copy is full" for line in lines)

        def kill_manager(session: pb.Session) -> None:
            with Replicas(running.logs) as replicas:
                replicas.send(signal.SIGKILL, "SessionManager", "standby of a session", session.id)

        def is_free() -> bool:
            try:
                create(stub)
            except grpc.RpcError:
                return False
            return True

        session = playing(stub)
        until(lambda: copies() > 0)
        before = copies()
        kill_manager(session)
        copied = until(lambda: copies() > before)
        until(lambda: described(stub, session).state == pb.SESSION_STATE_RUNNING)
        stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))
        options = pb.SessionOptions()
        options.lease.FromNanoseconds(int(LEASE_S * 1e9))
        until(lambda: stub.GetServerInfo(pb.GetServerInfoRequest()).free_slots == 1)
        abandoned = stub.CreateSession(pb.CreateSessionRequest(options=options))
        kill_manager(abandoned)
        return {"another_copy_s": copied, "lease_s": LEASE_S, "slot_free_s": until(is_free)}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    options = parser.parse_args()
    chart = Chart(Path(sys.executable).with_name("helm"))
    # Ray puts sockets there, whose names may not be long.
    with TemporaryDirectory(prefix="lt") as name:
        folders = iter(range(9))

        def folder() -> Path:
            made = Path(name) / str(next(folders))
            made.mkdir()
            return made

        found = {
            "manager_killed": manager_killed(folder()),
            "config_changed": changes(chart, folder()),
            "scaled_by_slots": scaling(chart, folder()),
            "host_drained": drained(folder()),
        }
    print(json.dumps(found, indent=1))
    document = {"machine": asdict(Machine.here(torch.device("cpu"))), **found}
    write_whole(options.output / "operations_pocket_cpu.json", json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
