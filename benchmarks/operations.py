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
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.harness.chart import Chart, Rendered
from benchmarks.harness.host_cluster import HostCluster
from benchmarks.harness.namespaces import Hosts
from benchmarks.harness.ray_head import GROUPS, SCALED, VALUES, operated
from benchmarks.harness.replicas import Replicas, joined_server, log_lines
from benchmarks.harness.viewer import Viewer, watched
from benchmarks.measure.machine import RESULTS, Machine
from engines.config.geometry import FRAMES_PER_SECOND
from serving.client.blocking import Client
from serving.config import ServerConfig
from serving.deployments.server_process import free_ports
from serving.errors import SessionError
from serving.media.whole_file import write_whole
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue

PROMPT = "a red balloon drifting steadily to the right over rolling hills at noon under a clear sky"
LEASE_S = 3.0
SLOTS, MOST = 2, 3
LOOK_S = 0.05


def until(is_so: Callable[[], bool], seconds: float = 120) -> float:
    """Seconds until something is so. Raises TimeoutError."""
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not so after {seconds:g} s")
        time.sleep(LOOK_S)
    return round(time.monotonic() - began, 2)


def playing(client: Client) -> pb.Session:
    """A session at its pace, which has started."""
    session = client.create(seed=7, fps=FRAMES_PER_SECOND, ahead=1, cues=(Cue(0, Blend.of(PROMPT)),))
    with client.control(session) as steered:
        steered.start()
    return session


def seen_by(viewer: Viewer) -> dict[str, Any]:
    """What a viewer saw; raises AssertionError where a frame is missing or came twice."""
    assert viewer.is_whole(), "a frame is missing, or came twice"
    kinds = [pb.ResumeKind.Name(moved.kind) for moved in viewer.resumed]
    return {"frames": len(viewer.frames), "longest_wait_s": round(viewer.longest_wait_s, 2), "moves": kinds}


def timed(address: str, change: Callable[[], object], *sessions: pb.Session) -> tuple[float, list[Viewer]]:
    """How long a change takes, in seconds, and what a viewer of each session sees of it."""
    took: list[float] = []

    def change_it() -> None:
        began = time.monotonic()
        change()
        took.append(round(time.monotonic() - began, 2))

    viewers = asyncio.run(watched(address, change_it, *sessions))
    return took[0], viewers


# The chart's Serve config


def config_changed(chart: Chart, folder: Path) -> dict[str, Any]:
    """What sessions see of config after config, and how long it takes until each is what there is.

    Of three denoisers, each of which has a session, two go; the third one has slots for all. Another setting
    replaces all managers and denoisers, of which there are two, and then one.
    """

    def config(slots: int, denoisers: int) -> Rendered:
        return chart.render(*VALUES, f"server.slots={slots}", f"replicas.denoisers={denoisers}")

    first = config(3, 1)
    with operated(first, folder, GROUPS) as server, Client(server.grpc) as client:
        server.put(first)
        server.wait_until_running()
        found = {
            "a second denoiser": changed(client, server.grpc, lambda: server.scale(config(3, 2), 2)),
            "a third": changed(client, server.grpc, lambda: server.scale(config(3, 3), 3)),
            "two fewer": changed(client, server.grpc, lambda: server.scale(config(3, 1), 1), sessions=3),
        }
        server.scale(config(3, 2), 2)
        found["another setting, two denoisers"] = changed(
            client, server.grpc, lambda: server.replace(config(4, 2))
        )
        server.scale(config(4, 1), 1)
        found["another setting, one denoiser"] = changed(client, server.grpc, lambda: server.replace(config(5, 1)))
        return found


def changed(client: Client, address: str, change: Callable[[], None], sessions: int = 1) -> dict[str, Any]:
    """What sessions, each on a denoiser of its own, see of a change, and how long that takes."""
    opened = [playing(client) for _ in range(sessions)]
    assert len({client.get(session.id).replica for session in opened}) == sessions, "two are on one denoiser"
    done_s, viewers = timed(address, change, *opened)
    for session in opened:
        client.delete(session.id)
    return {"done_s": done_s, "sessions": [seen_by(viewer) for viewer in viewers]}


def scaled_by_slots(chart: Chart, folder: Path) -> dict[str, Any]:
    """From when a session comes that leaves too few free slots until there is another denoiser."""
    took, refused = [], 0
    rendered = chart.render(*SCALED, f"server.slots={SLOTS}", f"autoscaling.denoisers.max={MOST}")
    with operated(rendered, folder, {"front": 2, "denoiser": MOST}) as server, Client(server.grpc) as client:
        server.put(rendered)
        server.wait_until_running()
        for count in range(1, SLOTS * MOST):
            try:
                client.create(fps=1, lease_s=1800)
            except SessionError:
                refused += 1
            wanted = min(MOST, count // SLOTS + 1)
            if len(server.replicas("Denoiser")) < wanted:
                took.append(until(lambda wanted=wanted: len(server.replicas("Denoiser")) >= wanted))  # type: ignore[misc]
    return {"another_denoiser_s": took, "refused": refused}


# Hosts


def host_drained(folder: Path) -> dict[str, Any]:
    """What a session sees of its host being drained, and how long that takes."""
    with Hosts() as hosts:
        cluster = HostCluster(hosts, folder, 2)
        with Client(cluster.address) as client:
            session = playing(client)
            host = cluster.host_of(client.get(session.id))
        gone_s, (viewer,) = timed(cluster.address, lambda: cluster.drain(host), session)
        return {"gone_s": gone_s, **seen_by(viewer)}


# A manager


def manager_killed(folder: Path) -> dict[str, Any]:
    """After its manager was killed: until another one has a session's copy, and until an abandoned one is gone."""
    ports = free_ports()
    config = ServerConfig(
        managers=2, slots=1, grpc_port=ports.grpc, http_port=ports.http, metrics_port=ports.metrics,
        recordings=folder,
    )  # fmt: skip
    with joined_server(config) as running, Client(f"127.0.0.1:{config.grpc_port}") as client:

        def copies() -> int:
            lines = log_lines(running.logs, "SessionManager")
            return sum(line["message"] == "standby copy is full" for line in lines)

        def kill_manager(session: pb.Session) -> None:
            with Replicas(running.logs) as replicas:
                replicas.send(signal.SIGKILL, "SessionManager", "standby of a session", session.id)

        def is_free() -> bool:
            try:
                client.create()
            except SessionError:
                return False
            return True

        session = playing(client)
        until(lambda: copies() > 0)
        before = copies()
        kill_manager(session)
        copied = until(lambda: copies() > before)
        until(lambda: client.get(session.id).state == pb.SESSION_STATE_RUNNING)
        client.delete(session.id)
        until(lambda: client.server_info().free_slots == 1)
        abandoned = client.create(lease_s=LEASE_S)
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
            "config_changed": config_changed(chart, folder()),
            "scaled_by_slots": scaled_by_slots(chart, folder()),
            "host_drained": host_drained(folder()),
        }
    print(json.dumps(found, indent=1))
    document = {"machine": asdict(Machine.here(torch.device("cpu"))), **found}
    write_whole(options.output / "operations_pocket_cpu.json", json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
