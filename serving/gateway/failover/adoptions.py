"""Sessions that this manager becomes the standby of because no other is: each is adopted with a new epoch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from serving.background_tasks import BackgroundTasks
from serving.errors import RegisterUnavailable, ReplicaLost, SessionNotFound
from serving.gateway.ownership.standby_host import StandbyHost
from serving.gateway.ownership.standby_session import StandbySession
from serving.replication.adoption import Adopt, Drop, decide_forsaken, decide_orphan
from serving.replication.kept_copies import KeptCopies, KeptCopy
from serving.replication.leases import Orphan
from serving.replication.ownership import Phase
from serving.replication.register import Ended, EpochRecord, Owner

logger = logging.getLogger(__name__)

ENDED_S = 5.0
"""How long it is waited for a replica that is told to let a copy go; it is told again."""


class Adopter(Protocol):
    """Begins to be the standby of a session, with what was kept of it."""

    def __call__(self, session_id: str, *, adopt: Adopt, kept: KeptCopy | None = None) -> object:
        """Begin."""


class Adoptions:
    """Finds sessions to adopt: by copies that replicas report or that are kept here, and in the register.

    Args:
        host: the manager.
        sessions: those that it is the standby of.
        kept: its copies of sessions that others have adopted.
        adopter: begins to be the standby of one more.
        background: runs what looks for them.

    """

    def __init__(
        self,
        host: StandbyHost,
        sessions: Mapping[str, StandbySession],
        kept: KeptCopies,
        adopter: Adopter,
        background: BackgroundTasks,
    ) -> None:
        self._host = host
        self._sessions = sessions
        self._kept = kept
        self._adopter = adopter
        self._background = background
        self._looked_after: set[str] = set()

    def start(self) -> None:
        """Begin to look."""
        self._background.start("the watch over copies that are kept", self._look_after_kept(), vital=True)
        self._background.start("the search for forsaken sessions", self._look_for_forsaken(), vital=True)

    def look_after(self, replica: str, orphan: Orphan) -> None:
        """A replica has a copy without a manager: it is adopted, or goes, unless it is this manager's own."""
        session = self._sessions.get(orphan.session_id)
        is_own = session is not None and session.ownership.claims(orphan.attempt, replica)
        if not is_own and orphan.attempt not in self._looked_after:
            self._looked_after.add(orphan.attempt)
            self._host.beside(self._adopt(replica, orphan))

    def _may_adopt(self, session_id: str) -> bool:
        session = self._sessions.get(session_id)
        return session is None or session.ownership.phase is Phase.WANTED

    async def _adopt(self, replica: str, orphan: Orphan) -> None:
        host = self._host
        try:
            top, managers = await host.register.latest(orphan.session_id), await host.managers_there()
            if (session := self._sessions.get(orphan.session_id)) is not None:
                session.looked(top, managers)
            match decide_orphan(host.config, top, orphan, replica, host.manager):
                case Adopt() as adopt if self._may_adopt(orphan.session_id):
                    kept = self._kept.of(orphan.session_id, adopt.owner, managers)
                    self._adopter(orphan.session_id, adopt=adopt, kept=kept)
                    # One whose lease runs was offered by a manager that leaves.
                    host.metrics.failed_over("manager", planned=orphan.without_lease_s == 0)
                case Drop(attempt, epoch) if _is_over(top):
                    logger.info("copy of a session that ended", extra={"session": orphan.session_id})
                    await host.pool.call(replica, "session_ended", orphan.session_id, epoch, timeout_s=ENDED_S)
                case Drop(attempt, epoch):
                    await host.pool.call(replica, "drop", attempt, epoch, timeout_s=ENDED_S)
                case _:
                    return
        except (RegisterUnavailable, ReplicaLost, SessionNotFound) as error:
            logger.info("orphan not looked after", extra={"session": orphan.session_id, "why": str(error)})
        finally:
            self._looked_after.discard(orphan.attempt)

    async def _look_after_kept(self) -> None:
        """Take sessions up again that nobody else can go on with; let copies go that nobody needs any more."""
        host = self._host
        while True:
            await asyncio.sleep(host.config.look_every_s)
            for session_id in self._kept.sessions:
                with suppress(RegisterUnavailable):
                    top, managers = await host.register.latest(session_id), await host.managers_there()
                    if (adopt := self._kept.look(session_id, top, managers, host.dead, _now())) is not None:
                        kept = self._kept.of(session_id, adopt.owner, managers)
                        self._adopter(session_id, adopt=adopt, kept=kept)

    async def _look_for_forsaken(self) -> None:
        """Adopt the sessions that have no standby both times of two: their owners have asked nobody for one."""
        host, before = self._host, dict[str, Owner]()
        while True:
            await asyncio.sleep(host.config.copy_wanted_s)
            with suppress(RegisterUnavailable, ReplicaLost):
                found, replicas = await self._without_standby(), (await host.pool.replicas()).all
                for session_id, owner in found.items() & before.items():
                    top, is_gone = await host.register.latest(session_id), owner.replica not in replicas
                    adopt = decide_forsaken(top, owner, host.manager, is_gone=is_gone)
                    if adopt is not None and session_id not in self._sessions:
                        logger.warning("session without standby", extra={"session": session_id})
                        # Of what this manager may have kept others may have a newer copy: those are asked first.
                        self._adopter(session_id, adopt=adopt)
                before = found

    async def _without_standby(self) -> dict[str, Owner]:
        """The owners of such sessions. Raises RegisterUnavailable and ReplicaLost where nobody can say."""
        host = self._host
        owners, managers = await host.register.open_sessions(), {*await host.managers()} - {host.manager}
        return {
            session: owner for session, owner in owners.items()
            if session not in self._sessions and owner.standby not in managers
        }  # fmt: skip


def _is_over(top: EpochRecord | None) -> bool:
    """Whether nobody goes on with a session."""
    return top is not None and isinstance(top.record, Ended) and top.record.moved_to is None


def _now() -> float:
    return asyncio.get_running_loop().time()
