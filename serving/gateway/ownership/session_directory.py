"""Where a session is: which copy of it the register names as the owner."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from cachetools import LRUCache

from serving.errors import SessionError, SessionLost, SessionMoved, SessionNotFound, SessionOnItsWay
from serving.replication.public_address import PublicAddress
from serving.replication.register import Destination, Ended, Owner, Register
from serving.timeline.formats.document import shown

REMEMBERED = 10_000
"""Sessions whose owner is remembered; of others the register is asked."""


class Located(NamedTuple):
    """The owner of a session."""

    epoch: int
    owner: Owner


class SessionDirectory:
    """Remembers what the register said, which may be old: whoever is refused by an owner looks again.

    Through the `public` address clients may come before their sessions do, in an upgrade.
    """

    def __init__(self, register: Register, public: PublicAddress) -> None:
        self._register, self._public = register, public
        self._known: LRUCache[str, Located] = LRUCache(REMEMBERED)

    async def owner(self, session_id: str) -> Located:
        """The owner, as far as is known.

        Raises SessionNotFound, SessionLost, SessionMoved, SessionOnItsWay and RegisterUnavailable.
        """
        known = self._known.get(session_id)
        return await self.look(session_id) if known is None else known

    async def look(self, session_id: str) -> Located:
        """The same, asked of the register."""
        top = await self._register.latest(session_id)
        self._known.pop(session_id, None)
        if top is None:
            raise await self._missing(session_id)
        if isinstance(top.record, Ended):
            raise _ended(session_id, top.record)
        return self.note(session_id, top.epoch, top.record)

    async def _missing(self, session_id: str) -> SessionError:
        """What is said of a session that the register has never had, or has forgotten."""
        if (destination := await self._register.destination()) is not None:
            return moved(destination)
        if self._public.sessions_may_arrive:
            return SessionOnItsWay(
                f"no session {shown(session_id)} is here yet; it may be on its way from the server that was at "
                "this address before, or have ended: ask again"
            )
        return SessionNotFound(f"no session {shown(session_id)} is here; it may have ended")

    async def replicas(self, session_ids: Iterable[str]) -> set[str]:
        """Those that own one of the sessions, asked of the register; those that are over have none."""
        found = await asyncio.gather(*map(self.look, session_ids), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException) and not isinstance(
                error, SessionNotFound | SessionLost | SessionMoved | SessionOnItsWay
            ):
                raise error
        return {located.owner.replica for located in found if isinstance(located, Located)}

    async def all_replicas(self) -> set[str]:
        """Those that own any session."""
        return {owner.replica for owner in (await self._register.open_sessions()).values()}

    def note(self, session_id: str, epoch: int, owner: Owner) -> Located:
        """An owner has been committed."""
        located = Located(epoch, owner)
        known = self._known.get(session_id)
        if known is None or known.epoch <= epoch:
            self._known[session_id] = located
        return located

    def forget(self, session_id: str) -> None:
        """What is remembered of a session is wrong."""
        self._known.pop(session_id, None)


def moved(destination: Destination) -> SessionMoved:
    """What is said of sessions that go on on another server."""
    where = f"at {destination.public}" if destination.public else "at the same address, over a new connection"
    return SessionMoved(
        f"sessions of this server go on on another one: ask {where}", destination.public, destination.page
    )


def _ended(session_id: str, ended: Ended) -> SessionNotFound | SessionLost | SessionMoved:
    if ended.moved_to is not None:
        return moved(ended.moved_to)
    if ended.lost:
        return SessionLost(f"the session {shown(session_id)} was lost: {ended.reason}")
    return SessionNotFound(f"no session {shown(session_id)} is here: {ended.reason}")
