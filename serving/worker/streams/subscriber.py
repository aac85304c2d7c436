"""A subscriber: one stream of a session's events to another process, with a bounded queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

from serving.errors import LimitReached, ServingError
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.messages import Item, Role

MOST_CHUNKS = 16
"""New chunks that wait for a subscriber; then the oldest gives way to a gap."""

MOST_EVENTS = 20_000
MAX_WAITING_BYTES = 128 << 20
"""All that waits, in events and in bytes; a subscriber that lets more pile up is let go."""


class _Waiting(NamedTuple):
    item: Item
    take: int = 0
    first_frame: int = 0
    frames: int = 0
    is_gap: bool = False

    @property
    def nbytes(self) -> int:
        return len(self.item.event or b"")

    @property
    def is_chunk(self) -> bool:
        return self.frames > 0 and not self.is_gap


class Subscriber:
    """Takes what is put, in order, and gives it to the one who iterates.

    Chunks that end at or before `from_frame` are left out; it counts for the take it was given in. `from_frame` of
    None is wherever the session is.
    """

    def __init__(self, role: Role, take: int, from_frame: int | None) -> None:
        self.role = role
        self._take = take
        self._from_frame = 0 if from_frame is None else from_frame
        self._waiting: deque[_Waiting] = deque()
        self._chunks = 0
        self._nbytes = 0
        self._allowed = MOST_CHUNKS
        self._more = asyncio.Event()
        self._failure: ServingError | None = None
        self._finished = False

    def put_event(self, event: bytes) -> None:
        """Send an event that is not a chunk."""
        self._put(_Waiting(Item(event)))

    def put_chunk(self, event: bytes, take: int, first_frame: int, frames: int) -> None:
        """Send a chunk, or the gap that it leaves if too many wait."""
        if self._finished or (take == self._take and first_frame + frames <= self._from_frame):
            return
        self._put(_Waiting(Item(event), take, first_frame, frames))
        self._chunks += 1
        if self._chunks > self._allowed and not self._finished:
            self._drop_chunk()

    def put_backlog(self, event: bytes, take: int, first_frame: int, frames: int) -> None:
        """Send a chunk that was kept for those who come late: not the subscriber's fault that it waits."""
        self._allowed += 1
        self.put_chunk(event, take, first_frame, frames)

    def finish(self, failure: ServingError | None = None) -> None:
        """End the iteration once everything has been taken; with `failure`, by raising it."""
        self._finished, self._failure = True, failure
        self._more.set()

    async def items(self, beat_s: float) -> AsyncIterator[Item]:
        """What was put; an empty item where nothing was for `beat_s`."""
        while True:
            if self._waiting:
                yield self._next()
                continue
            if self._finished:
                break
            self._more.clear()
            try:
                # `wait_for` would forget that it was cancelled if something came at the same moment.
                async with asyncio.timeout(beat_s):
                    await self._more.wait()
            except TimeoutError:
                yield Item()
        if self._failure is not None:
            raise self._failure

    def _put(self, waiting: _Waiting) -> None:
        if self._finished:
            return
        self._waiting.append(waiting)
        self._nbytes += waiting.nbytes
        if len(self._waiting) > MOST_EVENTS or self._nbytes > MAX_WAITING_BYTES:
            waited = f"{len(self._waiting)} events with {self._nbytes} bytes waited for this stream"
            self._waiting.clear()
            self.finish(LimitReached(f"{waited}; read it faster"))
        self._more.set()

    def _next(self) -> Item:
        waiting = self._waiting.popleft()
        self._chunks -= waiting.is_chunk
        self._nbytes -= waiting.nbytes
        return waiting.item

    def _drop_chunk(self) -> None:
        """Put a gap in place of the oldest chunk, or widen the one before it in the same take."""
        place = next(n for n, waiting in enumerate(self._waiting) if waiting.is_chunk)
        dropped, self._chunks = self._waiting[place], self._chunks - 1
        del self._waiting[place]
        self._nbytes -= dropped.nbytes
        take, first, frames = dropped.take, dropped.first_frame, dropped.frames
        gaps = (n for n in range(place) if self._waiting[n].is_gap and self._waiting[n].take == take)
        if (before := next(gaps, None)) is not None:
            first = self._waiting[before].first_frame
            frames += self._waiting[before].frames
            self._nbytes -= self._waiting[before].nbytes
            del self._waiting[before]
            place -= 1
        event = pb.Event(take=take, gap=pb.Gap(first_frame=first, frames=frames))
        gap = _Waiting(Item(event.SerializeToString()), take, first, frames, is_gap=True)
        self._nbytes += gap.nbytes
        self._waiting.insert(place, gap)
