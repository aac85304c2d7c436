"""Pictures of a controller that wait to be passed on to its session's replica: bounded, and the newest win."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from serving.pb.longtake.v1 import sessions_pb2 as pb

MOST_PICTURES = 16
MOST_BYTES = 16 << 20
"""That wait; then the oldest are dropped."""


class Batch(NamedTuple):
    """Pictures, and ends of them, in their order; and how many were dropped before."""

    commands: list[pb.Command]
    dropped: int


class PictureQueue:
    """Takes pictures at any rate, and counts those that it drops."""

    def __init__(self) -> None:
        self._waiting: deque[pb.Command] = deque()
        self._bytes = 0
        self._dropped = 0
        self._end: pb.Command | None = None
        self._more = asyncio.Event()

    def put(self, command: pb.Command) -> None:
        """A picture, or the end of those that came."""
        if command.HasField("end_input"):
            if self._end is not None and self._waiting and self._waiting[-1] is self._end:
                return
            self._end = command
        else:
            self._end = None
        self._waiting.append(command)
        self._bytes += len(command.picture.data)
        while len(self._waiting) > MOST_PICTURES or (self._bytes > MOST_BYTES and len(self._waiting) > 1):
            self._drop_oldest()
        self._more.set()

    def repeat_end(self) -> None:
        """Say once more that no more pictures come, if that is so: who was told may be gone."""
        if self._end is not None and not self._waiting:
            self.put(self._end)

    async def take(self) -> Batch:
        """All that waits, once there is something."""
        while not self._waiting:
            self._more.clear()
            await self._more.wait()
        taken = Batch(list(self._waiting), self._dropped)
        self._waiting.clear()
        self._bytes = self._dropped = 0
        return taken

    def count_dropped(self) -> None:
        """A picture is not put here, since it is none."""
        self._dropped += 1

    def lost(self, batch: Batch) -> None:
        """What was taken has not arrived."""
        self._dropped += batch.dropped + sum(command.HasField("picture") for command in batch.commands)

    def _drop_oldest(self) -> None:
        gone = self._waiting.popleft()
        self._bytes -= len(gone.picture.data)
        self._dropped += gone.HasField("picture")
