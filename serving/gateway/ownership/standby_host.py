"""What the sessions that one manager is the standby of have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from serving.errors import ReplicaLost, SessionNotFound
from serving.gateway.ownership.metrics import GatewayMetrics
from serving.gateway.ownership.replica_pool import TOLD_S, ReplicaPool
from serving.gateway.ownership.session_directory import SessionDirectory
from serving.replication.contacts import Contacts
from serving.replication.leases import LeaseConfig
from serving.replication.register import Register

logger = logging.getLogger(__name__)


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
    contacts: Contacts = field(default_factory=Contacts)
    dead: set[str] = field(default_factory=set)
    """Replicas whose process is known to be dead; ids are never used again."""

    def tell(self, replica: str, method: str, *arguments: Any) -> None:
        """Call a method of a replica that may be silent, for when it speaks again."""

        async def tell() -> None:
            try:
                await self.pool.call(replica, method, *arguments, timeout_s=TOLD_S)
            except (ReplicaLost, SessionNotFound) as lost:
                logger.debug("replica not told", extra={"replica": replica, "method": method, "why": str(lost)})

        self.beside(tell())
