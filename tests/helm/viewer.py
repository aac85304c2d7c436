"""A client of a server on a Ray head: what it sees while something changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.client.aio import AsyncClient
from serving.pb.longtake.v1 import sessions_pb2 as pb
from tests.helm.conftest import Chart
from tests.helm.operator import Operated

VALUES = ("insecure=true", "shutdown.replicaSeconds=60", "shutdown.managerSeconds=90", "replicas.managers=2")
TWO = (*VALUES, "replicas.denoisers=2")
GROUPS = {"front": 4, "denoiser": 3}
MORE = 120
"""Frames that are watched once everything has changed."""


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


async def watched_while_all_are_replaced(
    chart: Chart, server: Operated, session: pb.Session, *values: str
) -> Seen:
    """The same while another setting than that of `values` replaces two denoisers and two managers."""

    def replicas() -> set[str]:
        return server.all_replicas("Denoiser", "SessionManager")

    before = replicas()

    def change() -> None:
        server.put(chart.render(*values, "server.slots=3"))
        server.wait_for(lambda: len(replicas() - before) == len(replicas()) == 4)

    return await watched(server, session, change)
