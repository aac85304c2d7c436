"""Spectators: all those of a session on one manager share one stream of its replica."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from serving.errors import ServingError, SessionFailed
from serving.gateway.event_relay import Audience, EventRelay
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.event_queue import EventQueue, Queued
from serving.protocol.stream_cursor import RelayCursor
from serving.replication.messages import Role

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0


class Spectators:
    """Watches sessions for any number of viewers. `beside` runs what outlives a request."""

    def __init__(self, relay: EventRelay, beside: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._relay = relay
        self._beside = beside
        self._streams: dict[str, SharedStream] = {}

    async def watch(
        self, session_id: str, from_frame: int | None, seconds: float, admit: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[pb.Event]:
        """A session's events, its state first, for at least `seconds`; a heartbeat where nothing happens for one.

        `admit` raises for who may not. What was kept from `from_frame` on is asked for once the shared stream
        stands, so that nothing is missed between the two; what comes twice is left out.
        """
        await admit()
        shared = self._streams.get(session_id)
        if shared is None or shared.is_over:
            shared = self._streams[session_id] = SharedStream(self._relay, session_id, self._beside)
        queue, cursor, overlaps = shared.join(), RelayCursor(from_frame), True
        ends = asyncio.get_running_loop().time() + seconds
        try:
            await shared.stands()
            for event in await self._kept(session_id, from_frame):
                cursor.accept(event)
                yield event
            while events := await queue.batch():
                for event in events:
                    # Frames come in order: behind the first that is new all are.
                    if overlaps and not cursor.accept(event):
                        continue
                    overlaps = overlaps and not event.HasField("chunk")
                    yield event
                if asyncio.get_running_loop().time() > ends:
                    return
        finally:
            shared.leave(queue)
            if shared.is_over and self._streams.get(session_id) is shared:
                del self._streams[session_id]

    async def _kept(self, session_id: str, from_frame: int | None) -> list[pb.Event]:
        kept: list[bytes] = await self._relay.ask(session_id, "kept_events", from_frame)
        return [pb.Event.FromString(event) for event in kept]


class SharedStream:
    """One stream of a session's replica, whose events go to every viewer as they are."""

    def __init__(
        self, relay: EventRelay, session_id: str, beside: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        self._relay = relay
        self._session_id = session_id
        self._beside = beside
        self._audience = Audience(0)
        self._queues: list[EventQueue[pb.Event]] = []
        self._failure: ServingError | None = None
        self._stands = asyncio.Event()
        self._is_quiet = True
        self._pump = asyncio.create_task(self._run())
        self._beat = asyncio.create_task(self._beats())

    @property
    def is_over(self) -> bool:
        """Whether nobody can join any more."""
        return self._pump.done() or self._pump.cancelling() > 0

    def join(self) -> EventQueue[pb.Event]:
        """One more viewer, who gets what comes from now on."""
        queue: EventQueue[pb.Event] = EventQueue(lambda event: event, 0, None)
        self._queues.append(queue)
        self._count()
        return queue

    def leave(self, queue: EventQueue[pb.Event]) -> None:
        """One viewer less; with the last one the stream ends."""
        self._queues.remove(queue)
        self._count()
        if not self._queues:
            self._pump.cancel()
            self._beat.cancel()

    async def stands(self) -> None:
        """Wait until the replica sends its events. Raises what keeps it from that."""
        await self._stands.wait()
        if self._failure is not None:
            raise self._failure

    def _count(self) -> None:
        self._audience.viewers = len(self._queues)
        if self._queues and self._stands.is_set():
            self._beside(self._relay.tell_viewers(self._audience))

    async def _run(self) -> None:
        failure: ServingError | None = None
        try:
            events = self._relay.events(self._session_id, Role.VIEWER, None, self._stands, audience=self._audience)
            async with aclosing(events):
                async for event in events:
                    self._put(event)
        except ServingError as error:
            failure = error
        except Exception as error:
            logger.exception("a shared stream failed", extra={"session": self._session_id})
            failure = SessionFailed.of("streaming", error)
        self._failure = failure
        for queue in self._queues:
            queue.finish(failure)
        self._stands.set()

    def _put(self, event: pb.Event) -> None:
        chunk, self._is_quiet = event.chunk, False
        queued = Queued(event, event.ByteSize(), event.take, chunk.first_frame, len(chunk.units))
        for queue in self._queues:
            queue.put(queued)

    async def _beats(self) -> None:
        """Tell the viewers, where nothing else does, that the stream is there."""
        beat = Queued(pb.Event(heartbeat=pb.Heartbeat()), 0)
        while not self._pump.done():
            await asyncio.sleep(HEARTBEAT_S)
            if self._is_quiet:
                for queue in self._queues:
                    queue.put(beat)
            self._is_quiet = True
