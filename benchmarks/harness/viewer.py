"""A client that watches a session while something happens to its server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from serving.client.aio import AsyncClient
from serving.pb.longtake.v1 import sessions_pb2 as pb

BEFORE, AFTER = 33, 120
"""Frames that are watched before something happens, and once it has."""
REACH_S = 200


@dataclass
class Viewer:
    """A client of a session: what came to it, and the longest time that it waited for a chunk, in seconds."""

    session: pb.Session
    frames: list[int] = field(default_factory=list)
    resumed: list[pb.Resumed] = field(default_factory=list)
    longest_wait_s: float = 0.0

    async def watch(self, address: str) -> None:
        """Watch from the first frame on, until this is cancelled. Raises AssertionError if the stream ends."""
        last = time.monotonic()
        async with AsyncClient(address) as client:
            async for event in client.watch(self.session.id, 0):
                self.resumed += [event.resumed] if event.HasField("resumed") else []
                if event.HasField("chunk"):
                    self.frames += [unit.frame for unit in event.chunk.units]
                    self.longest_wait_s = max(self.longest_wait_s, time.monotonic() - last)
                    last = time.monotonic()
        raise AssertionError("the stream ended")

    async def reach(self, frame: int) -> None:
        """Wait until so many frames have come. Raises TimeoutError."""
        async with asyncio.timeout(REACH_S):
            while len(self.frames) < frame:
                await asyncio.sleep(0.05)

    def is_whole(self) -> bool:
        """Whether no frame is missing and none came twice."""
        return self.frames == list(range(len(self.frames)))


async def reach(viewers: Sequence[Viewer], frame: int) -> None:
    """Wait until so many frames have come to each. Raises TimeoutError."""
    await asyncio.gather(*(viewer.reach(frame) for viewer in viewers))


async def watched(address: str, change: Callable[[], object], *sessions: pb.Session) -> list[Viewer]:
    """What comes to a client of each session while something changes, and for some time afterwards."""
    viewers = [Viewer(session) for session in sessions]
    async with asyncio.TaskGroup() as tasks:
        watching = [tasks.create_task(viewer.watch(address)) for viewer in viewers]
        await reach(viewers, BEFORE)
        await asyncio.to_thread(change)
        await reach(viewers, max(len(viewer.frames) for viewer in viewers) + AFTER)
        for task in watching:
            task.cancel()
    for viewer in viewers:
        print(f"longest wait for a chunk: {viewer.longest_wait_s:.2f} s, {viewer.resumed}")
    return viewers
