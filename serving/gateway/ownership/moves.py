"""A planned move: a session is handed over by a replica that leaves to one that stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serving.errors import SlotsFull
from serving.gateway.ownership.placement import roomiest
from serving.gateway.ownership.replica_pool import ANSWER_S
from serving.gateway.ownership.standby_host import StandbyHost
from serving.replication.messages import HandedOver, Prepared
from serving.replication.register import Owner


async def moved_copy(
    host: StandbyHost,
    owner: Owner,
    epoch: int,
    attempt: str,
    move: int,
    exact: bool,
    yielded: Callable[[float], None],
    tried: Callable[[str], None],
) -> Prepared:
    """A copy of a session as `attempt`, from where its owner at `epoch` leaves it; `yielded` is told when it did.

    Bit for bit where that is possible and `exact` says so. There has to be room before the owner is asked to
    yield. `tried` is told the replica before it is called. Raises SlotsFull if none that stays has room, and what
    the two replicas raise.
    """
    pool, config = host.pool, host.config
    if (target := await roomiest(pool)) is None:
        raise SlotsFull("no replica that stays has a free slot")
    machine = await pool.call(target, "machine", timeout_s=ANSWER_S) if exact else {}
    arguments = (owner.attempt, epoch, move, machine)
    handed: HandedOver = await pool.call(owner.replica, "hand_over", *arguments, timeout_s=config.yield_timeout_s)
    yielded(asyncio.get_running_loop().time())
    tried(target)
    prepared: Prepared = await pool.call(
        target, "prepare", attempt, handed.spec, (), handed.resume, epoch, owner.attempt,
        timeout_s=config.prepare_timeout_s,
    )  # fmt: skip
    return prepared
