"""Spectators: all those of a session on one manager share one stream of its replica."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from serving.background_tasks import BackgroundTasks
from serving.errors import FrameOutOfRange, LimitReached, ServingError, SessionFailed
from serving.gateway.arrivals import Arrivals
from serving.gateway.controller_stream import session_ended
from serving.gateway.failover.event_relay import Audience, EventRelay
from serving.gateway.ownership.metrics import GatewayMetrics
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.event_broadcast import EventBroadcast, Reader
from serving.protocol.events import SerializedEvent
from serving.protocol.stream_cursor import RelayCursor
from serving.replication.messages import Joined, Role

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0

TELL_EVERY_S = 0.25
"""How often a replica is told how many viewers a stream has, where that has changed or it may not have heard."""


class Spectators:
    """Watches sessions for any number of viewers. `metrics` count gaps."""

    def __init__(self, relay: EventRelay, metrics: GatewayMetrics) -> None:
        self._relay = relay
        self._metrics = metrics
        self._streams: dict[str, SharedStream] = {}

    async def watch(
        self, session_id: str, from_frame: int | None, seconds: float, admit: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[SerializedEvent]:
        """A session's events, its state first, for at least `seconds`; a heartbeat where nothing happens for one.

        `admit` raises for who may not. What was kept from `from_frame` on is asked for once the shared stream
        stands, so that nothing is missed between the two; what comes twice is left out. Raises LimitReached where
        the session has all the viewers that it may have.
        """
        await admit()
        shared = self._streams.get(session_id)
        if shared is None or shared.is_over:
            shared = SharedStream(self._relay, session_id, self._metrics)
            self._streams[session_id] = shared
        reader, cursor, overlaps = shared.join(), RelayCursor(from_frame), True
        ends = asyncio.get_running_loop().time() + seconds
        try:
            await shared.stands()
            for sent in await shared.admitted(reader, from_frame):
                cursor.accept(sent)
                yield sent
            while events := await reader.batch():
                for sent in events:
                    if overlaps:
                        if not cursor.accept(sent):
                            continue
                        # Frames come in order: behind the first that is new all are.
                        overlaps = sent.span is None
                    yield sent
                if asyncio.get_running_loop().time() > ends:
                    yield _lasted(seconds)
                    return
            yield session_ended()
        finally:
            shared.leave(reader)
            if shared.is_over and self._streams.get(session_id) is shared:
                del self._streams[session_id]


class SharedStream:
    """One stream of a session's replica, whose events go to every viewer as they are."""

    def __init__(self, relay: EventRelay, session_id: str, metrics: GatewayMetrics) -> None:
        self._relay = relay
        self._session_id = session_id
        self._audience = Audience(0)
        self._admitted: set[Reader] = set()
        self._arrivals = Arrivals(self._ask)
        self._is_told = True
        self._broadcast = EventBroadcast(metrics.skipped)
        self._stands = asyncio.Event()
        self._is_quiet = True
        self._waiting_for = pb.WAIT_REASON_UNSPECIFIED
        self._pump = asyncio.create_task(self._run())
        self._background = BackgroundTasks()
        self._beat = self._background.start("heartbeats to viewers", self._beats(), session=session_id)
        self._count = self._background.start("number of viewers", self._tell(), session=session_id)

    @property
    def is_over(self) -> bool:
        """Whether nobody can join any more."""
        return self._pump.done() or self._pump.cancelling() > 0 or self._beat.done()

    def join(self) -> Reader:
        """One more viewer, who gets what comes from now on."""
        reader = self._broadcast.join()
        self._audience.viewers = len(self._broadcast.readers)
        return reader

    def leave(self, reader: Reader) -> None:
        """One viewer less; with the last one the stream ends."""
        reader.leave()
        self._admitted.discard(reader)
        self._audience.viewers = len(self._broadcast.readers)
        if not self._audience.viewers:
            self._pump.cancel()
            self._beat.cancel()
            self._count.cancel()
        self._is_told = False

    async def admitted(self, reader: Reader, from_frame: int | None) -> list[SerializedEvent]:
        """What a reader who has joined begins with, from the chunk with `from_frame` on.

        Raises LimitReached, and FrameOutOfRange for a frame that is not kept any more.
        """
        viewers, events = await self._arrivals.answer(from_frame)
        if len(self._admitted) >= viewers:
            raise LimitReached(f"{viewers} viewers of the session are here, and no more may be; come back later")
        self._admitted.add(reader)
        if from_frame is None:
            return events[:1]
        if from_frame < (oldest := events[0].event.state.oldest_frame):
            raise FrameOutOfRange(f"frame {from_frame} is not kept any more; the oldest frame is {oldest}")
        return [sent for sent in events if sent.span is None or sent.span.end_frame > from_frame]

    async def _ask(self, from_frame: int | None) -> tuple[int, list[SerializedEvent]]:
        arguments = (self._audience.stream, self._audience.viewers, from_frame)
        joined: Joined = await self._relay.ask(self._session_id, "join_viewers", *arguments)
        # Some may have left meanwhile, of which the replica may have heard before.
        self._is_told = False
        return joined.viewers, list(map(SerializedEvent.read, joined.events))

    async def _tell(self) -> None:
        """Tell the replica of viewers who have come or left; those of a moment together."""
        while not self._pump.done():
            await asyncio.sleep(TELL_EVERY_S)
            if self._stands.is_set() and not self._is_told:
                self._is_told = True
                if not await self._relay.tell_viewers(self._audience):
                    self._is_told = False

    async def stands(self) -> None:
        """Wait until the replica sends its events. Raises what keeps it from that."""
        await self._stands.wait()
        if self._broadcast.failure is not None:
            raise self._broadcast.failure

    async def _run(self) -> None:
        failure: ServingError | None = None
        try:
            events = self._relay.events(self._session_id, Role.VIEWER, None, self._stands, audience=self._audience)
            async with aclosing(events):
                async for sent in events:
                    self._is_quiet = False
                    if sent.span is None and sent.event.HasField("state"):
                        self._waiting_for = sent.event.state.waiting
                    self._broadcast.put(sent)
        except ServingError as error:
            failure = error
        except Exception as error:
            logger.exception("a shared stream failed", extra={"session": self._session_id})
            failure = SessionFailed.of("streaming", error)
        self._broadcast.finish(failure)
        self._stands.set()

    async def _beats(self) -> None:
        """Tell the viewers, where nothing else does, that the stream is there."""
        while not self._pump.done():
            await asyncio.sleep(HEARTBEAT_S)
            if self._is_quiet:
                waiting = self._waiting_for if self._stands.is_set() else pb.WAIT_REASON_REPLICA
                self._broadcast.put(SerializedEvent.of(pb.Event(heartbeat=pb.Heartbeat(waiting=waiting))))
            self._is_quiet = True


def _lasted(seconds: float) -> SerializedEvent:
    message = f"a stream lasts {seconds:g} s; watch again from the next frame"
    return SerializedEvent.of(pb.Event(end=pb.StreamEnd(reason=pb.STREAM_END_REASON_TIME_LIMIT, message=message)))
