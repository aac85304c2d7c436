"""The sessions that this manager is the standby of: opened, kept across losses, and ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from serving.background_tasks import BackgroundTasks
from serving.errors import RegisterUnavailable, ReplicaLost, ServingError
from serving.gateway.failover.adoptions import ENDED_S, Adoptions
from serving.gateway.failover.renewals import Renewals, tell
from serving.gateway.ownership.metrics import GatewayMetrics
from serving.gateway.ownership.replica_pool import Managers, ReplicaPool
from serving.gateway.ownership.session_directory import SessionDirectory
from serving.gateway.ownership.shared_answer import SharedAnswer
from serving.gateway.ownership.standby_host import OtherServers, StandbyHost
from serving.gateway.ownership.standby_session import FirstCopy, StandbySession
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.adoption import Adopt
from serving.replication.kept_copies import KeptCopies, KeptCopy
from serving.replication.leases import LeaseConfig
from serving.replication.ownership import Phase
from serving.replication.public_address import PublicAddress
from serving.replication.register import Destination, Ended, Register

FORGET_EVERY_S = 30.0

COMMITTED_EVERY_S = 0.05
"""How often it is looked whether the register has answered for a session that nobody waits for."""

DESTINATION_KEPT_S = 1.0
"""How old the answer may be whether all sessions are to go to another server."""

SAME_TIME_S = 1.0
"""What is taken away as one is heard of within it."""

MOVES_S = 60.0
"""The longest that a manager stays for sessions to move: a replica that starts for them may load a large model."""


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
        self._destination = SharedAnswer(register.destination, DESTINATION_KEPT_S)
        self._background = BackgroundTasks()
        self._adoptions = Adoptions(self._host, self._sessions, self._kept, self._standby, self._background)
        self._renewals = Renewals(self._host, self._sessions, self._adoptions.look_after, self._background)
        self._is_begun = False

    def start(self) -> None:
        """Begin to renew leases, on the event loop. To begin again does nothing."""
        if not self._is_begun:
            self._is_begun = True
            self._background.start("the watch over sessions", self._watch(), vital=True)
            self._adoptions.start()
            self._background.start("forgetting sessions that have ended", self._forget_ended(), vital=True)

    def check(self) -> None:
        """Raise RuntimeError if sessions are not looked after any more."""
        self._background.check()

    def leave(self) -> None:
        """This manager is being taken away: others are asked to adopt its sessions, which it keeps until then."""
        self._renewals.leave()

    @property
    def is_standby(self) -> bool:
        """Whether there are sessions that this manager keeps."""
        return bool(self._sessions)

    async def finish_moves(self) -> None:
        """Wait, for a minute at most, until sessions have moved whose replicas are being taken away too.

        For a manager that is being taken away: one that is new has never heard of replicas that are on their way
        out, and could reach none of them.
        """
        await asyncio.sleep(SAME_TIME_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(MOVES_S):
                while await self._has_moving():
                    await asyncio.sleep(self._config.renew_every_s / 2)

    async def _has_moving(self) -> bool:
        """Sessions whose standby is here, or that only have viewers here."""
        leaving = (await self._renewals.replicas()).leaving
        kept = any(session.is_on(replica) for session in self._sessions.values() for replica in leaving)
        return kept or any(map(self._renewals.reads_from, leaving))

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
            await self._pool.call(located.owner.replica, "session_ended", *arguments, timeout_s=ENDED_S)

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
            self._host, session_id, self._renewals.renew_now, self._released, first=first, attempt=attempt,
            adopt=adopt, copy=None if kept is None else self._kept.take(session_id), kept=kept,
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
        self._renewals.stream_opened(stream, replica)

    def stream_closed(self, stream: str) -> None:
        """It is not read any more."""
        self._renewals.stream_closed(stream)

    # Tasks

    async def _watch(self) -> None:
        """Replicas that are new, and the passing of time for each session."""
        destination: Destination | None = None
        while True:
            replicas = await self._renewals.replicas()
            self._renewals.follow(replicas.all)
            destination = await self._where_to(destination)
            has_room = any(room > 0 for room in self.contacts.rooms(replicas.speaking).values())
            for session in list(self._sessions.values()):
                session.ownership.evacuate(destination)
                tell(session, partial(session.tick, replicas.leaving, has_room=has_room))
            await asyncio.sleep(self._config.renew_every_s / 2)

    async def _where_to(self, before: Destination | None) -> Destination | None:
        try:
            return await self.destination()
        except RegisterUnavailable:
            return before

    async def _forget_ended(self) -> None:
        while True:
            await asyncio.sleep(FORGET_EVERY_S)
            with suppress(RegisterUnavailable):
                await self._register.forget_ended()

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the requests, for as long as it takes; that it failed is logged."""
        self._background.start("work beside the requests", work)


def _now() -> float:
    return asyncio.get_running_loop().time()
