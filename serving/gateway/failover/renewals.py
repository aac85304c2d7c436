"""The calls that renew leases: every L/4 one to each replica.

A call names the leases of this manager's sessions there, and the streams that are read here. Its answer says how
the copies are, and which have no manager any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

from serving.background_tasks import BackgroundTasks
from serving.errors import ReplicaDied, ReplicaLost
from serving.gateway.ownership.replica_pool import Replicas
from serving.gateway.ownership.standby_host import StandbyHost
from serving.gateway.ownership.standby_session import StandbySession
from serving.replication.leases import Orphan, RenewAnswer

logger = logging.getLogger(__name__)

RENEWALS_ON_THEIR_WAY = 4
"""To one replica: on a slow link the next one leaves before the last is answered, until one is overdue."""


class Renewals:
    """Renews what this manager has on each replica.

    Args:
        host: the manager.
        sessions: those that it is the standby of.
        orphaned: is told of a copy on a replica whose own manager is gone.
        background: runs the calls.

    """

    def __init__(
        self,
        host: StandbyHost,
        sessions: Mapping[str, StandbySession],
        orphaned: Callable[[str, Orphan], None],
        background: BackgroundTasks,
    ) -> None:
        self._host = host
        self._sessions = sessions
        self._orphaned = orphaned
        self._background = background
        self._streams: dict[str, str] = {}
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._soon: dict[str, asyncio.Event] = {}
        self._is_leaving = False

    async def replicas(self) -> Replicas:
        """Those that there are; none where nobody can say."""
        try:
            return await self._host.pool.replicas()
        except ReplicaLost as lost:
            logger.warning("replicas cannot be listed", extra={"why": str(lost)})
            return Replicas(())

    def follow(self, replicas: Iterable[str]) -> None:
        """Call those, too, that have not been called before."""
        for replica in replicas:
            if replica not in self._loops:
                self._soon[replica] = asyncio.Event()
                self._loops[replica] = self._background.start("renewing leases", self._loop(replica))

    def renew_now(self, replica: str) -> None:
        """Call a replica before its time."""
        if (soon := self._soon.get(replica)) is not None:
            soon.set()

    def leave(self) -> None:
        """This manager is being taken away: replicas are told at once, and report its copies to others."""
        self._is_leaving = True
        for replica in self._soon:
            self.renew_now(replica)

    def stream_opened(self, stream: str, replica: str) -> None:
        """A stream of the replica is read here."""
        self._streams[stream] = replica

    def reads_from(self, replica: str) -> bool:
        """Whether any stream of the replica is read here."""
        return replica in self._streams.values()

    def stream_closed(self, stream: str) -> None:
        """It is not read any more."""
        self._streams.pop(stream, None)

    async def _loop(self, replica: str) -> None:
        """Each L/4, until the replica is dead, or nobody speaks of it any more."""
        soon, on_their_way = self._soon[replica], set[asyncio.Task[bool]]()
        try:
            while all(call.result() for call in on_their_way if call.done()):
                on_their_way = {call for call in on_their_way if not call.done()}
                soon.clear()
                if len(on_their_way) < RENEWALS_ON_THEIR_WAY:
                    on_their_way.add(asyncio.create_task(self._renew(replica)))
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._host.config.renew_every_s):
                        await soon.wait()
        finally:
            for call in on_their_way:
                call.cancel()
            self._loops.pop(replica, None)
            self._soon.pop(replica, None)

    async def _renew(self, replica: str) -> bool:
        """One call; False if there is to be no other."""
        contacts, lease_s = self._host.contacts, self._host.config.lease_s
        on_it = [session for session in self._sessions.values() if session.is_on(replica)]
        leases = [lease for session in on_it if (lease := session.ownership.renewal()) is not None]
        streams = [stream for stream, at in self._streams.items() if at == replica]
        request = contacts.request(self._host.manager, replica, leases, streams, leaving=self._is_leaving)
        asked_at = _now()
        try:
            answer: RenewAnswer = await self._host.pool.call(replica, "renew", request, timeout_s=lease_s)
        except ReplicaDied:
            contacts.forget(replica)
            self._host.dead.add(replica)
            for session in list(self._sessions.values()):
                tell(session, partial(session.replica_died, replica))
            return False
        except ReplicaLost as lost:
            logger.debug("lease not renewed", extra={"replica": replica, "why": str(lost)})
            return bool(on_it or streams) or replica in (await self.replicas()).all
        if contacts.heard(replica, answer.reading, _now()):
            self._heard(replica, answer, asked_at)
        return True

    def _heard(self, replica: str, answer: RenewAnswer, asked_at: float) -> None:
        self._host.contacts.heard_room(replica, answer.room)
        for report in answer.copies:
            if (session := self._sessions.get(report.session_id)) is not None:
                tell(session, partial(session.reported, report, asked_at))
        for orphan in answer.orphans:
            # Where all are being taken away, nobody's sessions go from one of them to the next.
            if orphan.without_lease_s or not self._is_leaving:
                self._orphaned(replica, orphan)


def tell(session: StandbySession, news: Callable[[], None]) -> None:
    """Tell a session. One that fails at that is left to whoever adopts it, and the others go on."""
    try:
        news()
    except Exception:
        logger.exception("the standby of a session failed", extra={"session": session.session_id})
        session.fail()


def _now() -> float:
    return asyncio.get_running_loop().time()
