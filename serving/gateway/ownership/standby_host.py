"""What the sessions that one manager is the standby of have in common."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.errors import ReplicaLost, SessionNotFound
from serving.gateway.ownership.metrics import GatewayMetrics
from serving.gateway.ownership.replica_pool import TOLD_S, Managers, ReplicaPool
from serving.gateway.ownership.session_directory import SessionDirectory
from serving.replication.contacts import Contacts
from serving.replication.leases import LeaseConfig
from serving.replication.messages import Departure
from serving.replication.register import Destination, Register

DEPARTING_AT_ONCE = 4
"""Sessions that go to another server at a time, which has to rebuild each; the others go on meanwhile."""

logger = logging.getLogger(__name__)


class OtherServers(Protocol):
    """Calls the server that sessions go to. Methods raise a ServingError where it refuses, or is out of reach."""

    async def offer(self, to: Destination, session_id: str, caller: str) -> None:
        """Ask whether it would take a session."""

    async def send(self, to: Destination, transfer: str, departure: Departure) -> None:
        """Have a session go on there."""

    async def settle(self, to: Destination, session_id: str, transfer: str) -> bool:
        """Whether it does; if not, it never will by this transfer."""


@dataclass(frozen=True)
class StandbyHost:
    """The manager, and what it calls and knows. `beside` runs something that outlives its sessions."""

    pool: ReplicaPool
    register: Register
    config: LeaseConfig
    manager: str
    directory: SessionDirectory
    beside: Callable[[Coroutine[Any, Any, None]], None]
    metrics: GatewayMetrics
    others: OtherServers
    managers: Managers
    snapshot_bytes: int
    """The most that a session may have that goes to another server."""
    contacts: Contacts = field(default_factory=Contacts)
    dead: set[str] = field(default_factory=set)
    """Replicas whose process is known to be dead; ids are never used again."""
    departing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DEPARTING_AT_ONCE))

    async def managers_there(self) -> Collection[str] | None:
        """The managers that there are; None where nobody can say."""
        try:
            return await self.managers()
        except ReplicaLost:
            return None

    def tell(self, replica: str, method: str, *arguments: Any) -> None:
        """Call a method of a replica that may be silent, for when it speaks again."""

        async def tell() -> None:
            try:
                await self.pool.call(replica, method, *arguments, timeout_s=TOLD_S)
            except (ReplicaLost, SessionNotFound) as lost:
                logger.debug("replica not told", extra={"replica": replica, "method": method, "why": str(lost)})

        self.beside(tell())
