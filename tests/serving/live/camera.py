"""A client with a camera: it pushes pictures, and keeps what it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import cycle

from serving.client.aio import AsyncClient
from serving.client.camera import push
from serving.client.interactive import PictureFormat
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue

Report = Callable[[pb.Chunk], None]


class Restyled:
    """What came of the pictures."""

    def __init__(self) -> None:
        self.chunks: list[pb.Chunk] = []
        self.events: list[pb.Event] = []
        self.sent_at: dict[int, float] = {}
        self.latencies_s: list[float] = []

    @property
    def frames(self) -> list[int]:
        return [unit.frame for chunk in self.chunks for unit in chunk.units]

    @property
    def pictures(self) -> list[int]:
        """Of each frame."""
        return [unit.picture for chunk in self.chunks for unit in chunk.units]

    @property
    def progress(self) -> pb.InputProgress:
        return [event.progress.input for event in self.events if event.HasField("progress")][-1]

    def take(self, event: pb.Event) -> None:
        self.events.append(event)
        if event.HasField("chunk"):
            self.chunks.append(event.chunk)
            now = asyncio.get_running_loop().time()
            self.latencies_s += [now - self.sent_at[unit.picture] for unit in event.chunk.units]


async def restyle(
    server: str, pictures: Sequence[bytes], format: PictureFormat, rate: float, frames: int, prompt: str,
    report: Report | None = None,
) -> Restyled:  # fmt: skip
    """What a session makes of pictures, up to so many frames."""
    seen = Restyled()
    async with AsyncClient(server) as client:
        session = await client.create(seed=7, restyles=True, cues=[Cue(0, Blend.of(prompt))])
        async with client.control(session, from_frame=0) as controller:
            await controller.start()
            pushing = asyncio.create_task(
                push(controller, cycle(pictures), format, rate, seen.sent_at.__setitem__)
            )
            try:
                async for event in controller:
                    seen.take(event)
                    if event.HasField("chunk") and report is not None:
                        report(event.chunk)
                    if len(seen.frames) >= frames:
                        break
            finally:
                pushing.cancel()
        await client.delete(session.id)
    return seen
