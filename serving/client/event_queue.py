"""Events on their way to who takes them, however late that is."""

from __future__ import annotations

import asyncio
from collections import deque

from serving.pb.longtake.v1 import sessions_pb2 as pb

MOST_EVENTS = 512


class EventQueue:
    """Never makes who puts wait: answers to commands come on the same stream, and must not wait for a reader.

    When more than `most` events wait, the oldest give way. Of what is lost the reader is told the frames, as a
    gap, and how the session stood last.
    """

    def __init__(self, most: int = MOST_EVENTS) -> None:
        self._most = most
        self._waiting: deque[pb.Event] = deque()
        self._state: pb.Event | None = None
        self._gap: pb.Event | None = None
        self._more = asyncio.Event()
        self._finished = False

    def put(self, event: pb.Event) -> None:
        """Let an event wait."""
        self._waiting.append(event)
        if len(self._waiting) > self._most:
            self._drop(self._waiting.popleft())
        self._more.set()

    def finish(self) -> None:
        """Nothing more comes."""
        self._finished = True
        self._more.set()

    async def get(self) -> pb.Event | None:
        """The next event; None at the end, however often it is asked for."""
        while not (self._waiting or self._finished):
            self._more.clear()
            await self._more.wait()
        if (state := self._state) is not None:
            self._state = None
            return state
        if (gap := self._gap) is not None:
            self._gap = None
            return gap
        return self._waiting.popleft() if self._waiting else None

    def _drop(self, event: pb.Event) -> None:
        if event.HasField("state"):
            self._state = event
        first, frames = event.gap.first_frame, event.gap.frames
        if event.HasField("chunk"):
            first, frames = event.chunk.first_frame, len(event.chunk.units)
        if frames and self._gap is not None and self._gap.take == event.take:
            self._gap.gap.frames = first + frames - self._gap.gap.first_frame
        elif frames:
            self._gap = pb.Event(take=event.take, gap=pb.Gap(first_frame=first, frames=frames))
