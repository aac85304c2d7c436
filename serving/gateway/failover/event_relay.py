"""A session's events, across the replicas it lives on: no frame is sent twice, none is left out."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from serving.errors import NoLease, ReplicaLost, SessionLost, SessionNotFound
from serving.gateway.failover.absences import Absences
from serving.gateway.failover.failover import Failover
from serving.gateway.ownership.metrics import GatewayMetrics
from serving.gateway.ownership.replica_pool import Managers, ReplicaPool
from serving.gateway.ownership.session_directory import Located
from serving.gateway.ownership.shared_answer import SharedAnswer
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent
from serving.protocol.stream_cursor import RelayCursor
from serving.replication.messages import Role
from serving.replication.register import Owner

logger = logging.getLogger(__name__)

MANAGERS_KEPT_S = 1.0
"""How old the answer may be."""

LOOK_EVERY_S = 0.1
"""How often the register is asked where a session is that does not answer."""


async def no_others() -> Collection[str]:
    """The managers of a server that has one."""
    return ()


class Controller(NamedTuple):
    """The client that steers a session, and whether it has done so before."""

    client_id: str = ""
    reattach: bool = False


@dataclass
class Audience:
    """How many viewers share a stream, and which stream of which copy that is."""

    viewers: int
    owner: Owner | None = None
    stream: str = ""


class EventRelay:
    """Streams and calls of the owners of sessions, wherever they are.

    What a lost owner did not answer is asked of the next one, for up to `recovery_s`; for `restart_s` while the
    session's standby is one of the `managers` that there are: it opens the session on the first replica that is
    there again. A replica that sends not even a heartbeat for `silence_s` is asked for a new stream.
    """

    def __init__(
        self,
        pool: ReplicaPool,
        failover: Failover,
        managers: Managers,
        silence_s: float,
        recovery_s: float,
        restart_s: float,
        metrics: GatewayMetrics,
    ) -> None:
        self._pool = pool
        self._failover = failover
        self._managers = SharedAnswer(managers, MANAGERS_KEPT_S)
        self._silence_s = silence_s
        self._recovery_s = recovery_s
        self._restart_s = restart_s
        self._metrics = metrics
        self._absences = Absences()

    async def ask(self, session_id: str, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """What `method` of the owner returns. Raises what it raises, SessionNotFound, SessionLost, ReplicaLost."""
        located = await self._failover.directory.owner(session_id)
        while True:
            owner, wait_s = located.owner, self._silence_s if timeout_s is None else timeout_s
            try:
                answer = await self._pool.call(owner.replica, method, owner.attempt, *arguments, timeout_s=wait_s)
            except (SessionNotFound, ReplicaLost) as lost:
                located = await self._next(session_id, owner, lost, follows=False)
            else:
                self._absences.end(owner)
                return answer

    async def events(
        self,
        session_id: str,
        role: Role,
        from_frame: int | None,
        followed: asyncio.Event | None = None,
        controller: Controller | None = None,
        audience: Audience | None = None,
    ) -> AsyncGenerator[SerializedEvent]:
        """The events of a session. `followed` is set for as long as a replica sends them."""
        cursor, followed = RelayCursor(from_frame), followed or asyncio.Event()
        lost_at: float | None = None
        located, before = await self._failover.directory.owner(session_id), None
        while True:
            try:
                async for sent in self._of_owner(located, role, cursor, controller, audience):
                    followed.set()
                    self._absences.end(located.owner)
                    if lost_at is not None and _is_elsewhere(before, located):
                        yield _resumed(sent.event, _now() - lost_at)
                    lost_at, before = None, located
                    controller = None if controller is None else controller._replace(reattach=True)
                    if cursor.accept(sent):
                        self._count(sent, 1 if audience is None else audience.viewers)
                        yield sent
                return
            except (SessionNotFound, ReplicaLost) as lost:
                followed.clear()
                before = before or located
                lost_at = _now() if lost_at is None else lost_at
                logger.info("stream lost", extra={"session": session_id, "why": str(lost)})
                located = await self._next(session_id, located.owner, lost, follows=True)

    def _count(self, sent: SerializedEvent, viewers: int) -> None:
        if sent.span is not None:
            self._metrics.sent(viewers * len(sent.data))
        elif sent.event.HasField("gap"):
            self._metrics.skipped(viewers * sent.event.gap.frames)

    async def tell_viewers(self, audience: Audience) -> bool:
        """Tell the replica how many viewers a stream has. Whether it has heard, and the stream is still there."""
        owner, stream = audience.owner, audience.stream
        if owner is None:
            return False
        arguments = (owner.attempt, stream, audience.viewers)
        try:
            await self._pool.call(owner.replica, "set_viewers", *arguments, timeout_s=self._silence_s)
        except (SessionNotFound, ReplicaLost):
            return False
        return audience.stream == stream

    async def _of_owner(
        self,
        located: Located,
        role: Role,
        cursor: RelayCursor,
        controller: Controller | None,
        audience: Audience | None,
    ) -> AsyncGenerator[SerializedEvent]:
        owner, stream = located.owner, uuid.uuid4().hex
        self._failover.stream_opened(stream, owner.replica)
        viewers = 1 if audience is None else audience.viewers
        reader = *(controller or Controller()), viewers
        arguments = (owner.attempt, role.value, cursor.next_frame, stream, *reader, cursor.take)
        if audience is not None:
            audience.owner, audience.stream = owner, stream
        try:
            async for item in self._pool.stream(owner.replica, "subscribe", *arguments, silence_s=self._silence_s):
                if item.event is not None:
                    yield SerializedEvent(item.event, item.span)
        finally:
            self._failover.stream_closed(stream)

    async def _next(
        self, session_id: str, owner: Owner, lost: SessionNotFound | ReplicaLost, *, follows: bool
    ) -> Located:
        """Where to ask next, after a moment. Raises SessionLost, or ReplicaLost for what may be asked again, once
        nobody has heard of the owner for too long. A stream `follows` its session for longer than a request waits.
        """
        is_kept = await self._is_kept(session_id, owner)
        patience_s = self._restart_s if is_kept and follows else self._recovery_s
        if _now() - self._absences.note(owner, _now()) >= patience_s:
            if isinstance(lost, NoLease):
                raise lost
            if is_kept:
                raise ReplicaLost(f"no replica has the session yet, which goes on when one is there: {lost}")
            raise SessionLost(f"the session was lost: {lost}, and nobody has it for {patience_s:g} s")
        await asyncio.sleep(LOOK_EVERY_S)
        return await self._failover.directory.look(session_id)

    async def _is_kept(self, session_id: str, owner: Owner) -> bool:
        """Whether the standby of a session is there, as far as anybody says."""
        if owner.standby == self._failover.manager:
            return self._failover.is_standby_of(session_id)
        try:
            return owner.standby in await self._managers.get()
        except ReplicaLost:
            return True


def _is_elsewhere(before: Located | None, located: Located) -> bool:
    return before is not None and before.owner.attempt != located.owner.attempt


def _resumed(event: pb.Event, silence_s: float) -> SerializedEvent:
    came = event.state.resumed
    resumed = pb.Resumed(frame=event.state.next_frame, reason=came.reason, kind=came.kind)
    resumed.silence.FromMilliseconds(round(1000 * silence_s))
    return SerializedEvent.of(pb.Event(take=event.take, resumed=resumed))


def _now() -> float:
    return asyncio.get_running_loop().time()
