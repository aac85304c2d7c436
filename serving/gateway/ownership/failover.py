"""The sessions that this manager is the standby of, and the calls that renew leases on their replicas.

Every L/4 each replica is called once: for the leases of these sessions, for the streams that are read here, and to
hear of copies whose own manager is gone, which are adopted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from serving.background_tasks import BackgroundTasks
from serving.errors import RegisterUnavailable, ReplicaDied, ReplicaLost, ServingError, SessionNotFound
from serving.gateway.ownership.metrics import GatewayMetrics
from serving.gateway.ownership.replica_pool import Managers, ReplicaPool, Replicas
from serving.gateway.ownership.session_directory import SessionDirectory
from serving.gateway.ownership.shared_answer import SharedAnswer
from serving.gateway.ownership.standby_host import OtherServers, StandbyHost
from serving.gateway.ownership.standby_session import FirstCopy, StandbySession
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.adoption import Adopt, Drop, decide_forsaken, decide_orphan
from serving.replication.kept_copies import KeptCopies, KeptCopy
from serving.replication.leases import LeaseConfig, Orphan, RenewAnswer
from serving.replication.ownership import Phase
from serving.replication.public_address import PublicAddress
from serving.replication.register import Destination, Ended, EpochRecord, Owner, Register

logger = logging.getLogger(__name__)

FORGET_EVERY_S = 30.0

RENEWALS_ON_THEIR_WAY = 4
"""To one replica: on a slow link the next one leaves before the last is answered, until one is overdue."""

TOLD_S = 5.0

COMMITTED_EVERY_S = 0.05
"""How often it is looked whether the register has answered for a session that nobody waits for."""

DESTINATION_KEPT_S = 1.0
"""How old the answer may be whether all sessions are to go to another server."""


class Failover:
    """Keeps sessions alive across the loss of replicas and of managers.

    Args:
        pool: the denoisers.
        register: what all managers agree on.
        config: how long a lease is.
        manager: the name of this process, which is never used again.
        metrics: where to count.
        others: calls the server that sessions go to.
        snapshot_bytes: the most that such a session may have.
        managers: which there are.

    """

    def __init__(
        self, pool: ReplicaPool, register: Register, config: LeaseConfig, manager: str, metrics: GatewayMetrics,
        others: OtherServers, snapshot_bytes: int, managers: Managers, public: PublicAddress,
    ) -> None:  # fmt: skip
        self._pool = pool
        self._register = register
        self._config = config
        self.directory = SessionDirectory(register, public)
        self._host = StandbyHost(
            pool, register, config, manager, self.directory, self.beside, metrics, others, managers,
            snapshot_bytes,
        )  # fmt: skip
        self.contacts = self._host.contacts
        self.manager = manager
        self._sessions: dict[str, StandbySession] = {}
        self._kept = KeptCopies(config, manager)
        self._streams: dict[str, str] = {}
        self._renewals: dict[str, asyncio.Task[None]] = {}
        self._soon: dict[str, asyncio.Event] = {}
        self._adopting: set[str] = set()
        self._is_leaving = False
        self._destination = SharedAnswer(register.destination, DESTINATION_KEPT_S)
        self._background = BackgroundTasks()
        self._is_begun = False

    def start(self) -> None:
        """Begin to renew leases, on the event loop. To begin again does nothing."""
        if not self._is_begun:
            self._is_begun = True
            self._background.start("the watch over sessions", self._watch(), vital=True)
            self._background.start("the watch over copies that are kept", self._look_after_kept(), vital=True)
            self._background.start("the search for forsaken sessions", self._look_for_forsaken(), vital=True)
            self._background.start("forgetting sessions that have ended", self._forget_ended(), vital=True)

    def check(self) -> None:
        """Raise RuntimeError if sessions are not looked after any more."""
        self._background.check()

    def leave(self) -> None:
        """This manager is being taken away: others are asked to adopt its sessions, which it keeps until then."""
        self._is_leaving = True
        for replica in self._soon:
            self._renew_now(replica)

    @property
    def is_standby(self) -> bool:
        """Whether there are sessions that this manager keeps."""
        return bool(self._sessions)

    async def stop(self) -> None:
        """Renew nothing any more: other managers adopt the sessions."""
        for session in list(self._sessions.values()):
            session.release()
        self._kept.close()
        await self._background.stop()

    # Sessions

    async def destination(self) -> Destination | None:
        """Where all sessions are to go. Raises RegisterUnavailable."""
        return await self._destination.get()

    async def open(self, session_id: str, first: FirstCopy, attempt: str | None = None) -> pb.Session:
        """Open a session, of which `first` makes the first copy (as `attempt`), and be its standby."""
        self.start()
        session = self._standby(session_id, first=first, attempt=attempt)
        try:
            return await session.opened()
        except asyncio.CancelledError:
            self.beside(self._end_quietly(session))
            raise

    async def end(self, session_id: str, reason: str) -> None:
        """End a session for good, wherever it is. Raises SessionNotFound for one that is over."""
        while True:
            located = await self.directory.look(session_id)
            if located.owner.held is not None:
                raise ReplicaLost(f"the session {session_id} is on its way to another server; ask again")
            if await self._register.create(session_id, located.epoch + 1, Ended(reason)):
                break
        self.directory.forget(session_id)
        if (session := self._sessions.get(session_id)) is not None:
            session.release()
        with suppress(ReplicaLost):
            arguments = (session_id, located.epoch + 1)
            await self._pool.call(located.owner.replica, "session_ended", *arguments, timeout_s=TOLD_S)

    def is_standby_of(self, session_id: str) -> bool:
        """Whether this manager has what a session needs to go on elsewhere, and sees to it."""
        return session_id in self._sessions

    async def _end_quietly(self, session: StandbySession) -> None:
        """Nobody waits for it to open; whoever asks again meanwhile opens another one of the same id."""
        # What is on its way to the register may be there yet, and would be adopted if it was left alone.
        while session.ownership.phase is Phase.COMMITTING and not session.is_released:
            await asyncio.sleep(COMMITTED_EVERY_S)
        # One that is not in the register is released before it can be on its way there.
        if session.ownership.epoch > 0 and self._sessions.get(session.session_id) is session:
            with suppress(ServingError):
                await self.end(session.session_id, "nobody waited for it to open")
        session.release()

    def _standby(
        self, session_id: str, *, first: FirstCopy | None = None, attempt: str | None = None,
        adopt: Adopt | None = None, kept: KeptCopy | None = None,
    ) -> StandbySession:  # fmt: skip
        if (before := self._sessions.get(session_id)) is not None:
            before.release()
        session = StandbySession(
            self._host, session_id, self._renew_now, self._released, first=first, attempt=attempt, adopt=adopt,
            copy=None if kept is None else self._kept.take(session_id), kept=kept,
        )  # fmt: skip
        self._sessions[session_id] = session
        session.begin()
        return session

    def _released(self, session: StandbySession) -> None:
        if self._sessions.get(session.session_id) is session:
            del self._sessions[session.session_id]
            if session.kept is not None:
                self._kept.keep(session.session_id, session.kept, session.ownership.copy_epoch, _now())

    # Streams

    def stream_opened(self, stream: str, replica: str) -> None:
        """A stream of the replica is read here."""
        self.start()
        self._streams[stream] = replica

    def stream_closed(self, stream: str) -> None:
        """It is not read any more."""
        self._streams.pop(stream, None)

    # Renewals

    async def _watch(self) -> None:
        """One loop for each replica that is there, and the passing of time for each session."""
        destination: Destination | None = None
        while True:
            replicas = await self._replicas()
            for replica in replicas.all:
                if replica not in self._renewals:
                    self._soon[replica] = asyncio.Event()
                    self._renewals[replica] = self._background.start("renewing leases", self._renew_loop(replica))
            destination = await self._where_to(destination)
            has_room = any(room > 0 for room in self.contacts.rooms(replicas.speaking).values())
            for session in list(self._sessions.values()):
                session.ownership.evacuate(destination)
                _told(session, partial(session.tick, replicas.leaving, has_room=has_room))
            await asyncio.sleep(self._config.renew_every_s / 2)

    async def _replicas(self) -> Replicas:
        try:
            return await self._pool.replicas()
        except ReplicaLost as lost:
            logger.warning("replicas cannot be listed", extra={"why": str(lost)})
            return Replicas(())

    async def _where_to(self, before: Destination | None) -> Destination | None:
        try:
            return await self.destination()
        except RegisterUnavailable:
            return before

    def _renew_now(self, replica: str) -> None:
        if (soon := self._soon.get(replica)) is not None:
            soon.set()

    async def _renew_loop(self, replica: str) -> None:
        """Each L/4, until the replica is dead, or nobody speaks of it any more."""
        soon, on_their_way = self._soon[replica], set[asyncio.Task[bool]]()
        try:
            while all(call.result() for call in on_their_way if call.done()):
                on_their_way = {call for call in on_their_way if not call.done()}
                soon.clear()
                if len(on_their_way) < RENEWALS_ON_THEIR_WAY:
                    on_their_way.add(asyncio.create_task(self._renew(replica)))
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._config.renew_every_s):
                        await soon.wait()
        finally:
            for call in on_their_way:
                call.cancel()
            self._renewals.pop(replica, None)
            self._soon.pop(replica, None)

    async def _renew(self, replica: str) -> bool:
        """One call; False if there is to be no other."""
        on_it = [session for session in self._sessions.values() if session.is_on(replica)]
        leases = [lease for session in on_it if (lease := session.ownership.renewal()) is not None]
        streams = [stream for stream, at in self._streams.items() if at == replica]
        request = self.contacts.request(self.manager, replica, leases, streams, leaving=self._is_leaving)
        asked_at = _now()
        try:
            answer: RenewAnswer = await self._pool.call(replica, "renew", request, timeout_s=self._config.lease_s)
        except ReplicaDied:
            self.contacts.forget(replica)
            self._host.dead.add(replica)
            for session in list(self._sessions.values()):
                _told(session, partial(session.replica_died, replica))
            return False
        except ReplicaLost as lost:
            logger.debug("lease not renewed", extra={"replica": replica, "why": str(lost)})
            return bool(on_it or streams) or replica in (await self._replicas()).all
        if self.contacts.heard(replica, answer.reading, _now()):
            self.contacts.heard_room(replica, answer.room)
            for report in answer.copies:
                if (found := self._sessions.get(report.session_id)) is not None:
                    _told(found, partial(found.reported, report, asked_at))
            for orphan in answer.orphans:
                self._look_after(replica, orphan)
        return True

    # Copies whose manager is gone

    def _look_after(self, replica: str, orphan: Orphan) -> None:
        session = self._sessions.get(orphan.session_id)
        if session is not None and session.ownership.claims(orphan.attempt, replica):
            return
        # Where all are being taken away, nobody's sessions go from one of them to the next.
        if self._is_leaving and not orphan.without_lease_s:
            return
        if orphan.attempt not in self._adopting:
            self._adopting.add(orphan.attempt)
            self.beside(self._adopt(replica, orphan))

    def _may_adopt(self, session_id: str) -> bool:
        session = self._sessions.get(session_id)
        return session is None or session.ownership.phase is Phase.WANTED

    async def _adopt(self, replica: str, orphan: Orphan) -> None:
        try:
            top, managers = await self._register.latest(orphan.session_id), await self._host.managers_there()
            if (session := self._sessions.get(orphan.session_id)) is not None:
                session.looked(top, managers)
            match decide_orphan(self._config, top, orphan, replica, self.manager):
                case Adopt() as adopt if self._may_adopt(orphan.session_id):
                    kept = self._kept.of(orphan.session_id, adopt.owner, managers)
                    self._standby(orphan.session_id, adopt=adopt, kept=kept)
                    # One whose lease runs was offered by a manager that leaves.
                    self._host.metrics.failed_over("manager", planned=orphan.without_lease_s == 0)
                case Drop(attempt, epoch) if _is_over(top):
                    logger.info("copy of a session that ended", extra={"session": orphan.session_id})
                    await self._pool.call(replica, "session_ended", orphan.session_id, epoch, timeout_s=TOLD_S)
                case Drop(attempt, epoch):
                    await self._pool.call(replica, "drop", attempt, epoch, timeout_s=TOLD_S)
                case _:
                    return
        except (RegisterUnavailable, ReplicaLost, SessionNotFound) as error:
            logger.info("orphan not looked after", extra={"session": orphan.session_id, "why": str(error)})
        finally:
            self._adopting.discard(orphan.attempt)

    # Copies of sessions that other managers have adopted

    async def _look_after_kept(self) -> None:
        """Take sessions up again that nobody else can go on with; let copies go that nobody needs any more."""
        while True:
            await asyncio.sleep(self._config.look_every_s)
            for session_id in self._kept.sessions:
                with suppress(RegisterUnavailable):
                    top, managers = await self._register.latest(session_id), await self._host.managers_there()
                    if (adopt := self._kept.look(session_id, top, managers, self._host.dead, _now())) is not None:
                        kept = self._kept.of(session_id, adopt.owner, managers)
                        self._standby(session_id, adopt=adopt, kept=kept)

    async def _look_for_forsaken(self) -> None:
        """Adopt the sessions that have no standby both times of two: their owners have asked nobody for one."""
        before: dict[str, Owner] = {}
        while True:
            await asyncio.sleep(self._config.copy_wanted_s)
            with suppress(RegisterUnavailable, ReplicaLost):
                found, replicas = await self._without_standby(), (await self._pool.replicas()).all
                for session_id, owner in found.items() & before.items():
                    top, is_gone = await self._register.latest(session_id), owner.replica not in replicas
                    adopt = decide_forsaken(top, owner, self.manager, is_gone=is_gone)
                    if adopt is not None and session_id not in self._sessions:
                        logger.warning("session without standby", extra={"session": session_id})
                        # Of what this manager may have kept others may have a newer copy: those are asked first.
                        self._standby(session_id, adopt=adopt)
                before = found

    async def _without_standby(self) -> dict[str, Owner]:
        """The owners of such sessions. Raises RegisterUnavailable and ReplicaLost where nobody can say."""
        owners, managers = await self._register.open_sessions(), {*await self._host.managers()} - {self.manager}
        return {
            session: owner for session, owner in owners.items()
            if session not in self._sessions and owner.standby not in managers
        }  # fmt: skip

    # Tasks

    async def _forget_ended(self) -> None:
        while True:
            await asyncio.sleep(FORGET_EVERY_S)
            with suppress(RegisterUnavailable):
                await self._register.forget_ended()

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the requests, for as long as it takes; that it failed is logged."""
        self._background.start("work beside the requests", work)


def _told(session: StandbySession, news: Callable[[], None]) -> None:
    """Tell a session. One that fails at that is left to whoever adopts it, and the others go on."""
    try:
        news()
    except Exception:
        logger.exception("the standby of a session failed", extra={"session": session.session_id})
        session.fail()


def _is_over(top: EpochRecord | None) -> bool:
    """Whether nobody goes on with a session."""
    return top is not None and isinstance(top.record, Ended) and top.record.moved_to is None


def _now() -> float:
    return asyncio.get_running_loop().time()
