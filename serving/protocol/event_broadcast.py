"""Events of one stream for many readers: each is kept once, and a reader is a place among them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice

from serving.errors import ServingError
from serving.protocol.event_queue import MOST_CHUNKS, overflow
from serving.protocol.events import SerializedEvent, gap_event

TRIM_EVERY = 16
"""Events between two looks at what every reader has read, where no chunk is among them: those are big."""


class EventBroadcast:
    """Takes events, in order, and gives each of them to every reader who had joined by then.

    The newest `MOST_CHUNKS` chunks are kept, and a gap in place of each older one. Readers that let too much pile
    up are let go. `skipped` is told, over all readers, of the frames that a gap has taken from them.
    """

    def __init__(self, skipped: Callable[[int], None] = lambda frames: None) -> None:
        self._skipped = skipped
        self.readers: set[Reader] = set()
        self.failure: ServingError | None = None
        self.is_finished = False
        self._events: deque[SerializedEvent] = deque()
        self._begin = 0
        self._nbytes = 0
        self._chunks: deque[int] = deque()
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def end(self) -> int:
        """How many events there have been."""
        return self._begin + len(self._events)

    def join(self) -> Reader:
        """A reader of what comes from now on."""
        self.readers.add(reader := Reader(self, self.end))
        return reader

    def put(self, sent: SerializedEvent) -> None:
        """Send an event to all."""
        if sent.span is not None:
            self._chunks.append(self.end)
        self._events.append(sent)
        self._nbytes += len(sent.data)
        if len(self._chunks) > MOST_CHUNKS:
            self._forget_chunk()
        if sent.span is not None or self.end % TRIM_EVERY == 0:
            self._trim()
        self._wake()

    def finish(self, failure: ServingError | None = None) -> None:
        """There are no more events; with `failure`, readers raise it once they have read them all."""
        self.is_finished, self.failure = True, failure
        self._wake()

    def since(self, place: int) -> list[SerializedEvent]:
        """The events from a place on."""
        unread = self.end - place
        if unread > TRIM_EVERY:
            return list(islice(self._events, len(self._events) - unread, None))
        return [self._events[at] for at in range(-unread, 0)]

    async def more(self) -> None:
        """Wait for the next event, or the end."""
        waits: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waits)
        await waits

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for reader in waiting:
            if not reader.done():
                reader.set_result(None)

    def _forget_chunk(self) -> None:
        place = self._chunks.popleft()
        at = place - self._begin
        span, nbytes = self._events[at].span, len(self._events[at].data)
        assert span is not None
        if behind := sum(reader.place <= place for reader in self.readers):
            self._skipped(behind * span.frames)
        self._events[at] = SerializedEvent.of(gap_event(span))
        self._nbytes += len(self._events[at].data) - nbytes

    def _trim(self) -> None:
        """Forget what all have read, and who reads too slowly."""
        self._forget_until(min((reader.place for reader in self.readers), default=self.end))
        if (failure := overflow(len(self._events), self._nbytes)) is not None:
            for reader in [one for one in self.readers if one.place == self._begin]:
                reader.let_go(failure)
            self._trim()

    def _forget_until(self, place: int) -> None:
        while self._begin < place:
            self._nbytes -= len(self._events.popleft().data)
            self._begin += 1
        while self._chunks and self._chunks[0] < place:
            self._chunks.popleft()


class Reader:
    """One who reads a broadcast."""

    def __init__(self, broadcast: EventBroadcast, place: int) -> None:
        self.place = place
        self._broadcast = broadcast
        self._failure: ServingError | None = None

    async def batch(self) -> list[SerializedEvent]:
        """All that has come, once something has; nothing at the end. Raises what the broadcast ended with."""
        broadcast = self._broadcast
        while self._failure is None and self.place == broadcast.end:
            if broadcast.is_finished:
                if broadcast.failure is not None:
                    raise broadcast.failure
                return []
            await broadcast.more()
        if self._failure is not None:
            raise self._failure
        events, self.place = broadcast.since(self.place), broadcast.end
        return events

    def leave(self) -> None:
        """Read no more."""
        self._broadcast.readers.discard(self)

    def let_go(self, failure: ServingError) -> None:
        """It has read too slowly."""
        self._failure = failure
        self.leave()
