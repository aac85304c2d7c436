"""A bounded queue of a session's events for one reader; chunks that are not read in time leave a gap."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from serving.errors import LimitReached, ServingError
from serving.media.chunk import ChunkSpan
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import gap_event

T = TypeVar("T")

MOST_CHUNKS = 16
"""New chunks that wait for a reader; then the oldest gives way to a gap."""

MOST_EVENTS = 20_000
MAX_WAITING_BYTES = 128 << 20
"""All that waits, in events and in bytes; a reader that lets more pile up is let go."""


def overflow(events: int, nbytes: int) -> LimitReached | None:
    """Why a reader for whom so much waits is let go; None where it is not."""
    if events <= MOST_EVENTS and nbytes <= MAX_WAITING_BYTES:
        return None
    return LimitReached(f"{events} events with {nbytes} bytes waited for this stream; read it faster")


class Queued(NamedTuple, Generic[T]):
    """An event with what a queue must know of it: the `span` of a chunk, or of a gap."""

    event: T
    nbytes: int
    span: ChunkSpan | None = None
    is_gap: bool = False

    @property
    def is_chunk(self) -> bool:
        """Whether it may give way to a gap."""
        return self.span is not None and not self.is_gap


class EventQueue(Generic[T]):
    """Takes events, in order, and gives them to the one who iterates; `write` makes one of a gap.

    Chunks that end at or before `from_frame` are left out; it counts for the take it was given in. `from_frame` of
    None is wherever the session is.
    """

    def __init__(self, write: Callable[[pb.Event], T], take: int, from_frame: int | None) -> None:
        self._write = write
        self._take = take
        self._from_frame = 0 if from_frame is None else from_frame
        self._waiting: deque[Queued[T]] = deque()
        self._chunks = 0
        self._nbytes = 0
        self._allowed = MOST_CHUNKS
        self._more = asyncio.Event()
        self._failure: ServingError | None = None
        self._finished = False

    def put(self, queued: Queued[T]) -> None:
        """Send an event; of chunks, the oldest leaves a gap if too many wait."""
        if (span := queued.span) is None:
            self._put(queued)
            return
        if self._finished or (span.take == self._take and span.end_frame <= self._from_frame):
            return
        self._put(queued)
        self._chunks += 1
        if self._chunks > self._allowed and not self._finished:
            self._drop_chunk()

    def put_backlog(self, queued: Queued[T]) -> None:
        """Send a chunk that was kept for those who come late: not the reader's fault that it waits."""
        self._allowed += 1
        self.put(queued)

    def finish(self, failure: ServingError | None = None) -> None:
        """End the iteration once everything has been taken; with `failure`, by raising it."""
        self._finished, self._failure = True, failure
        self._more.set()

    async def events(self, beat_s: float) -> AsyncGenerator[T | None]:
        """What was put; None where nothing was for `beat_s`."""
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
                yield None
        if self._failure is not None:
            raise self._failure

    def _put(self, waiting: Queued[T]) -> None:
        if self._finished:
            return
        self._waiting.append(waiting)
        self._nbytes += waiting.nbytes
        if (failure := overflow(len(self._waiting), self._nbytes)) is not None:
            self._waiting.clear()
            self.finish(failure)
        self._more.set()

    def _next(self) -> T:
        waiting = self._waiting.popleft()
        self._chunks -= waiting.is_chunk
        self._nbytes -= waiting.nbytes
        return waiting.event

    def _drop_chunk(self) -> None:
        """Put a gap in place of the oldest chunk, or widen the one before it in the same take.

        It stays where it began: whoever reads it knows then why the numbers of events behind it skip some.
        """
        place, dropped = next((n, waiting) for n, waiting in enumerate(self._waiting) if waiting.is_chunk)
        del self._waiting[place]
        self._chunks -= 1
        self._nbytes -= dropped.nbytes
        span = dropped.span
        assert span is not None
        for before, waiting in enumerate(islice(self._waiting, place)):
            if waiting.is_gap and waiting.span is not None and waiting.span.take == span.take:
                span = ChunkSpan(span.take, waiting.span.first_frame, waiting.span.frames + span.frames)
                del self._waiting[before]
                place = before
                break
        self._waiting.insert(place, Queued(self._write(gap_event(span)), 0, span, is_gap=True))
