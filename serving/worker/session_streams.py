"""The streams that leave a denoiser: a session's events, and the feed of its standby."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor
from typing import NamedTuple

from engines.video.stream_engine import StreamEngine
from serving.errors import LimitReached, NoLease, ReplicaLost
from serving.pipeline.stages import in_thread
from serving.replication.messages import FeedItem, FullState, Item, Role
from serving.worker.session_copies import SessionCopies
from serving.worker.state.active_session import ActiveSession, at_rest
from serving.worker.state.session_guard import SessionGuard
from serving.worker.streams.standby_feed import StandbyFeed
from serving.worker.streams.subscriber import Subscriber

FULL_STATES_AT_ONCE = 2
"""Standbys to which the full state is sent at a time: at 480x832 each has 10 MB."""

FULL_STATE_S = 5.0
"""How long the others wait for a standby that does not take it."""

UNREAD = "no manager reads this stream any more"

MOST_REPLACED = 8
"""Controllers of a session that were replaced and look on: each holds what its client sent and was not told."""


def _replaced_often() -> LimitReached:
    return LimitReached(f"{MOST_REPLACED} controllers have replaced this one; watch the session to look on")


class _OpenStream(NamedTuple):
    session: ActiveSession
    subscriber: Subscriber


class SessionStreams:
    """Streams of the copies on one replica. Nothing but heartbeats leaves while a copy has no lease.

    A session has at most `most_viewers`, beside the controller that steers it. A stream without news says each
    `beat_s` that its replica lives.
    """

    def __init__(
        self, copies: SessionCopies, engine: StreamEngine, executor: Executor, wake: Callable[[], None],
        most_viewers: int, beat_s: float, guard: SessionGuard,
    ) -> None:  # fmt: skip
        self._copies = copies
        self._engine = engine
        self._executor = executor
        self._wake = wake
        self._most_viewers = most_viewers
        self._beat_s = beat_s
        self._guard = guard
        self._open: dict[str, _OpenStream] = {}
        self._sending_full: dict[str, float] = {}

    async def subscribe(
        self,
        attempt: str,
        role: Role,
        from_frame: int | None,
        stream: str,
        client_id: str = "",
        reattach: bool = False,
        viewers: int = 1,
        take: int | None = None,
    ) -> AsyncGenerator[Item]:
        """A session's events, beginning with its state, once the copy has a lease; `stream` names them.

        `from_frame` is one of `take`, if that is known: of another take all is sent that there is.
        A controller says which client it is, and whether it steered the session before. Raises SessionNotFound,
        FrameOutOfRange for a frame that is not kept any more, LimitReached where all viewers are there, and
        ReplicaLost once no manager reads the stream, or the session goes on elsewhere.
        """
        session = self._copies.get(attempt)
        self._copies.leases.streams.opened(stream, _now())
        try:
            async for beat in self._beats(session, stream):
                yield beat
            session.require_open()
            if role is Role.VIEWER:
                viewers = min(viewers, self._most_viewers - session.audience.viewers)
                if viewers < 1:
                    raise self._too_many()
            if from_frame is not None and take not in (None, session.logic.take):
                from_frame = 0
            subscriber = session.audience.subscribe(role, from_frame, _now(), viewers)
            self._open[stream] = _OpenStream(session, subscriber)
            if role is Role.CONTROLLER:
                session.attach(subscriber, client_id, reattach=reattach, now=_now())
                self._make_room(session)
            self._wake()
            with self._guard.streaming(session, "streaming"):
                async for item in subscriber.items(self._beat_s):
                    if item.event is not None:
                        async for beat in self._beats(session, stream):
                            yield beat
                    yield item
        finally:
            self._close(stream)

    def set_viewers(self, stream: str, viewers: int) -> int:
        """A stream is to be shared by so many now. Returns by how many it may be."""
        if (found := self._open.get(stream)) is None:
            return viewers
        before = found.subscriber.viewers
        room = self._most_viewers - found.session.audience.viewers
        found.subscriber.viewers = min(viewers, before + max(room, 0))
        return found.subscriber.viewers

    async def feed(self, attempt: str, manager: str) -> AsyncGenerator[FeedItem]:
        """What the standby of a session lacks: first the full state. Raises NoLease for who is not the standby."""
        session = self._copies.get(attempt)
        if self._copies.leases.standby(attempt) != manager:
            raise NoLease(f"{manager} is not the standby of this copy")
        appointing = asyncio.create_task(self._appoint(session))
        try:
            # A session that waits for its decoder is not at rest for as long as that takes.
            while not (await asyncio.wait([appointing], timeout=self._beat_s))[0]:
                yield FeedItem()
            items = appointing.result().items(self._beat_s)
            while sum(until > _now() for until in self._sending_full.values()) >= FULL_STATES_AT_ONCE:
                yield FeedItem()
                await asyncio.sleep(self._beat_s / 4)
            self._sending_full[attempt] = _now() + FULL_STATE_S
            self._copies.leases.feeds(attempt, manager)
            with self._guard.streaming(session, "replication"):
                async for item in items:
                    yield item
                    self._sending_full.pop(attempt, None)
        finally:
            self._sending_full.pop(attempt, None)
            if not appointing.cancel() and not appointing.exception() and session.feed is appointing.result():
                session.feed = None

    def close_expired(self, now: float) -> None:
        """End the streams that no manager reads any more; they count no viewer."""
        for stream in self._copies.leases.streams.expired(now):
            if (found := self._open.get(stream)) is None:
                self._close(stream)
                continue
            with self._guard.working(found.session, "closing a stream"):
                found.subscriber.finish(ReplicaLost(UNREAD))
                self._close(stream)

    def _make_room(self, session: ActiveSession) -> None:
        """A controller always finds a place: one who was replaced, and only looks on, leaves it first."""
        replaced = [
            found for found in session.audience.subscribers if found.was_controller and found.role is Role.VIEWER
        ]
        while replaced and (session.audience.viewers > self._most_viewers or len(replaced) > MOST_REPLACED):
            is_often = len(replaced) > MOST_REPLACED
            gone = replaced.pop(0)
            gone.finish(_replaced_often() if is_often else self._too_many())
            session.audience.unsubscribe(gone, _now())

    def _too_many(self) -> LimitReached:
        return LimitReached(f"{self._most_viewers} viewers watch the session, and no more may; come back later")

    def _close(self, stream: str) -> None:
        self._copies.leases.streams.closed(stream)
        if (found := self._open.pop(stream, None)) is not None:
            found.session.audience.unsubscribe(found.subscriber, _now())
            self._wake()

    async def _beats(self, session: ActiveSession, stream: str) -> AsyncIterator[Item]:
        """Heartbeats for as long as the copy waits for a lease. Raises ReplicaLost where it waits in vain."""
        while not session.closed and not self._copies.has_lease(session):
            yield Item()
            try:
                async with asyncio.timeout(self._beat_s):
                    await session.renewed.wait()
            except TimeoutError:
                continue
        if not self._copies.leases.streams.is_open(stream):
            raise ReplicaLost(UNREAD)
        if isinstance(session.failure, ReplicaLost):
            # What waits here is of a past that the session may not have had where it goes on.
            raise session.failure

    async def _appoint(self, session: ActiveSession) -> StandbyFeed:
        """Begin to feed a standby, in place of any before it."""
        async with at_rest(session, self._wake):
            with self._guard.streaming(session, "replication"):
                return await self._full_feed(session)

    async def _full_feed(self, session: ActiveSession) -> StandbyFeed:
        """A feed that begins with all that there is of a session, which rests meanwhile."""
        session.require_open()
        source, update = self._engine.replica_log(session.stream), None
        if session.stream.blocks:
            pending = await in_thread(self._executor, source.changes)
            update = await asyncio.to_thread(pending.update)
        if session.feed is not None:
            session.feed.finish(ReplicaLost("another stream feeds the standby"))
        full = FullState(session.spec, session.standing().record, session.logic.applied.past())
        session.feed = StandbyFeed(source, full, session.standing)
        pictures = () if session.input is None else tuple(session.input.kept)
        session.feed.put_stream(tuple(session.audience.kept), update, pictures)
        return session.feed


def _now() -> float:
    return asyncio.get_running_loop().time()
