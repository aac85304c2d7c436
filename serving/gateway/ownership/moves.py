"""A planned move: a session is handed over by its replica to one that stays, or to another server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from serving.errors import ReplicaLost, ServingError, SlotsFull
from serving.gateway.ownership.placement import roomiest
from serving.gateway.ownership.replica_pool import ANSWER_S, inside
from serving.gateway.ownership.standby_host import StandbyHost
from serving.replication.messages import Departure, HandedOver, Prepared
from serving.replication.register import Destination, Hold, Owner

logger = logging.getLogger(__name__)


async def moved_copy(
    host: StandbyHost,
    owner: Owner,
    epoch: int,
    attempt: str,
    move: int,
    slots: int,
    exact: bool,
    yielded: Callable[[float], bool],
    tried: Callable[[str], None],
) -> Prepared:
    """A copy of a session as `attempt`, from where its owner at `epoch` leaves it; `yielded` is told when it did,
    and says whether the move goes on.

    Bit for bit where that is possible and `exact` says so. There have to be `slots` free, none for a session that
    is suspended, before the owner is asked to yield. `tried` is told the replica before it is called. Raises
    SlotsFull if none that stays has room, and what the two replicas raise.
    """
    pool, config = host.pool, host.config
    if (target := await roomiest(pool, host.contacts, slots)) is None:
        raise SlotsFull("no replica that stays has a free slot")
    machine = await pool.call(target, "machine", timeout_s=ANSWER_S) if exact else {}
    arguments = (owner.attempt, epoch, move, machine)
    handed: HandedOver = await pool.call(owner.replica, "hand_over", *arguments, timeout_s=config.yield_timeout_s)
    if not yielded(asyncio.get_running_loop().time()):
        raise ReplicaLost("the move was given up before the session was handed over")
    tried(target)
    host.contacts.opening(target)
    prepared: Prepared = await pool.call(
        target, "prepare", attempt, handed.spec, (), handed.resume, epoch, owner.attempt,
        inside(config.prepare_timeout_s), timeout_s=config.prepare_timeout_s,
    )  # fmt: skip
    return prepared


async def departed(
    host: StandbyHost, owner: Owner, epoch: int, move: int, to: Destination, session_id: str, caller: str
) -> Departure:
    """A session as its owner at `epoch` leaves it for another server, which has said that it would take it.

    Raises SlotsFull where others are on their way already, and what the two raise.
    """
    if host.departing.locked():
        raise SlotsFull("other sessions go first")
    async with host.departing:
        await host.others.offer(to, session_id, caller)
        arguments = (owner.attempt, epoch, move, host.snapshot_bytes)
        timeout_s = host.config.yield_timeout_s
        left: Departure = await host.pool.call(owner.replica, "depart", *arguments, timeout_s=timeout_s)
        return left


async def has_begun(host: StandbyHost, hold: Hold, session_id: str, departure: Departure | None) -> bool:
    """Whether a session goes on on the other server, which is sent its `departure` if there is one to be sent.

    Raises a ServingError where that server does not say.
    """
    if departure is not None:
        try:
            async with host.departing:
                await host.others.send(hold.destination, hold.transfer, departure)
        except ServingError as error:
            logger.warning("the other server has not said yes", extra={"session": session_id, "why": str(error)})
        else:
            return True
    return await host.others.settle(hold.destination, session_id, hold.transfer)
