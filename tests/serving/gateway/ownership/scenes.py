"""What the tests of several managers and replicas have clients do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from serving.auth import Caller
from serving.gateway.session_service import SessionService
from serving.pb.longtake.v1 import sessions_pb2 as pb
from tests.serving.gateway.ownership.local_cluster import until
from tests.serving.worker.bench import NOON

ANNA = Caller("")
END = 105


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(90):
            await work

    asyncio.run(bounded())


def cue(text: str, frame: int | None = None) -> pb.Cue:
    return pb.Cue(frame=frame, prompts=[pb.WeightedPrompt(text=text)])


async def created(manager: SessionService, fps: int = 32) -> pb.Session:
    options = pb.SessionOptions(height=32, width=48, seed=7, fps=fps)
    return await manager.create(pb.CreateSessionRequest(options=options, cues=[cue(NOON, 0)]), ANNA)


async def started(manager: SessionService, fps: int = 32) -> pb.Session:
    session = await created(manager, fps)
    await manager.command(session.id, pb.Command(start=pb.Start()), ANNA)
    return session


class Viewer:
    """Watches a session from its first frame on, in a task of its own."""

    def __init__(self, manager: SessionService, session: pb.Session) -> None:
        self.events: list[pb.Event] = []
        self.task = asyncio.create_task(self._watch(manager, session.id))

    async def _watch(self, manager: SessionService, session_id: str) -> None:
        async for sent in manager.watch(pb.WatchRequest(session_id=session_id, from_frame=0), ANNA):
            self.events.append(sent.event)

    @property
    def frames(self) -> list[int]:
        return [unit.frame for event in self.events if event.HasField("chunk") for unit in event.chunk.units]

    @property
    def resumed(self) -> int:
        return sum(event.HasField("resumed") for event in self.events)

    async def sees(self, frames: int, seconds: float = 30.0) -> None:
        await until(lambda: len(self.frames) >= frames or self.task.done(), seconds)
        if self.task.done():
            self.task.result()
        assert self.frames == list(range(len(self.frames)))
