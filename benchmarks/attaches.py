"""What becomes of two paced sessions while another program comes to watch them, and goes, 100 times a second.

    python -m benchmarks.attaches --seconds 30

The server has its defaults. Its sessions play alone first, then beside the program that attaches: how many of
their blocks come late to their viewers, how long an attach takes until its first event, and how many cores each
kind of process keeps busy.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.harness.processes import Tree
from benchmarks.overload import LEFT_OUT_S, as_json, measure_and_keep, together
from engines.config.geometry import FRAMES_PER_SECOND
from serving.client.aio import AsyncClient
from serving.deployments.server_process import LocalServer, local_server
from serving.pb.longtake.v1 import sessions_pb2 as pb

PER_SECOND = 100
SESSIONS = 2
LOOK_S = 0.1
EARLIER_S = 1.0
"""The attaches end so long before the sessions, which are not to be missed."""

PATIENCE_S = 20.0
"""The longest that a first event is waited for, and that there may be no session."""


@dataclass
class Attaches:
    """Attaches over some seconds: milliseconds to the first event of each, and why others had none.

    `cpu_seconds` are those of the program that attaches.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    ms: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def summary(self) -> Mapping[str, Any]:
        """As results have it."""
        cuts = statistics.quantiles(self.ms, n=100)
        return {
            "per_second": round((len(self.ms) + self.failed.total()) / self.seconds, 1),
            "answered": len(self.ms),
            "failed": dict(self.failed),
            "own_cores": round(self.cpu_seconds / self.seconds, 3),
            "first_event_ms": {
                "p50": round(cuts[49], 1),
                "p95": round(cuts[94], 1),
                "max": round(max(self.ms), 1),
            },
        }


async def attach(server: str, seconds: float, per_second: float = PER_SECOND) -> Attaches:
    """Watch the sessions of a server in turn for so long, each time until the first event."""
    found = Attaches()
    async with AsyncClient(server) as client, asyncio.TaskGroup() as attaching:
        sessions = itertools.cycle(await _sessions(client))
        began, computed = time.monotonic(), time.process_time()
        for number in range(int(seconds * per_second)):
            await asyncio.sleep(began + number / per_second - time.monotonic())
            attaching.create_task(_once(client, next(sessions), found))
        found.seconds, found.cpu_seconds = time.monotonic() - began, time.process_time() - computed
    return found


async def _sessions(client: AsyncClient) -> list[str]:
    async with asyncio.timeout(PATIENCE_S):
        while not (sessions := [session.id for session in await client.list()]):
            await asyncio.sleep(LOOK_S)
    return sessions


async def _once(client: AsyncClient, session_id: str, found: Attaches) -> None:
    began = time.monotonic()
    request = pb.WatchRequest(session_id=session_id)
    events = client.stub.Watch(request, metadata=client.metadata, timeout=PATIENCE_S)
    try:
        await events.read()
        found.ms.append(1000 * (time.monotonic() - began))
    except grpc.aio.AioRpcError as error:
        found.failed[error.code().name] += 1
    finally:
        events.cancel()


def attach_elsewhere(server: str, seconds: float) -> Attaches:
    """The same, in a process without an event loop."""
    return asyncio.run(attach(server, seconds))


def play(server: LocalServer, folder: Path, seconds: float) -> dict[str, Any]:
    """Two sessions for so long once they run evenly: as their viewers have them, and what is computed for it."""
    meter = Tree(server.pid).measure()
    found = asyncio.run(together(server.address, folder, [FRAMES_PER_SECOND] * SESSIONS, LEFT_OUT_S + seconds))
    return {"sessions": as_json(found), "cores": meter.read()._asdict()}


def measure(seconds: float, folder: Path) -> dict[str, Any]:
    """Both parts, one after the other."""
    with (
        local_server(["--recordings", str(folder)]) as server,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere,
    ):
        elsewhere.submit(int).result()  # It has imported everything.
        alone = play(server, folder, seconds)
        attaching = elsewhere.submit(attach_elsewhere, server.address, LEFT_OUT_S + seconds - EARLIER_S)
        beside = play(server, folder, seconds)
        return {"alone": alone, "beside_attaches": beside, "attaches": attaching.result().summary}


def main() -> None:
    """Measure, print and keep."""
    measure_and_keep(measure, "attaches_pocket_cpu", 30, __doc__)


if __name__ == "__main__":
    main()
