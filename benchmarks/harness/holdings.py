"""What the replicas of a server hold that could leak: sessions, memory, file handles, sockets and threads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import psutil
from ray import serve

from benchmarks.harness.processes import MIB, anonymous_bytes
from benchmarks.harness.replicas import replicas
from serving.config import ServerConfig
from serving.deployments.routing.replica_client import ReplicaClient
from serving.protocol.requests import APPLICATION

ANSWER_S = 5.0

COUNTED = ("mib", "handles", "sockets", "threads")
"""Of a process, as `Holdings` has it."""


class Room(NamedTuple):
    """What a replica could still open, and what it could if it had nothing open."""

    deployment: str
    replica: str
    free: int
    of: int


async def rooms(config: ServerConfig, logs: Path) -> list[Room]:
    """Of every denoiser and video decoder of a server whose stages are separate. Raises ReplicaLost."""
    sizes = {"Denoiser": config.slots, "VideoDecoder": 2 * config.slots * config.denoisers}
    found = []
    for replica in [one for one in replicas(logs) if one.deployment in sizes]:
        handle = serve.get_deployment_handle(replica.deployment, APPLICATION)
        free = await ReplicaClient(handle, "replica", ANSWER_S).call(replica.id, "room", timeout_s=ANSWER_S)
        found.append(Room(replica.deployment, replica.id, free, sizes[replica.deployment]))
    return found


@dataclass(frozen=True)
class Holdings:
    """Of one process."""

    name: str
    pid: int
    mib: float
    handles: int
    sockets: int
    threads: int


def holdings(logs: Path) -> list[Holdings]:
    """Of every replica, and of this process."""
    processes = [("client and driver", psutil.Process().pid)]
    processes += [(replica.deployment, replica.pid) for replica in replicas(logs)]
    found = []
    for name, pid in processes:
        with suppress(psutil.NoSuchProcess, OSError):
            found.append(_held(name, psutil.Process(pid)))
    return found


def average(held: Iterable[Holdings], name: str) -> dict[str, float]:
    """Of the processes of a name, and how many there are."""
    of_name: Sequence[Holdings] = [one for one in held if one.name == name]
    counts = {
        field: round(mean(getattr(one, field) for one in of_name), 1) if of_name else 0.0 for field in COUNTED
    }
    return {"processes": len(of_name), **counts}


def _held(name: str, process: psutil.Process) -> Holdings:
    with process.oneshot():
        return Holdings(
            name, process.pid, round(anonymous_bytes(process.pid) / MIB, 1),
            process.num_fds(), len(process.net_connections("all")), process.num_threads(),
        )  # fmt: skip
