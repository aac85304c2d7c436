"""Which replica a session is opened on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from engines.errors import EngineError
from serving.errors import ReplicaLost, ServingError, SlotsFull, Unforeseen, WrongState
from serving.gateway.ownership.ranking import by_room
from serving.gateway.ownership.replica_pool import ANSWER_S, ReplicaPool, inside, none_answers
from serving.replication.contacts import Contacts
from serving.replication.messages import Prepared, ResumeState, SessionSpec
from serving.replication.register import EpochRecord, Owner
from serving.timeline.cue import Cue

logger = logging.getLogger(__name__)

ASKED_FIRST = 4
"""Replicas that are asked for their room before a session is opened: those that seemed to have most of it."""

OF_ONE_REPLICA = (SlotsFull, ReplicaLost, WrongState, Unforeseen)
"""Refusals that say nothing of what another replica would answer."""

ASKED_AT_ONCE = 2
"""Replicas that are asked whether the server is there: a second one, in case that the first is about to die."""


async def ask_all(pool: ReplicaPool, method: str, *arguments: Any) -> dict[str, Any]:
    """What each replica answers within a second; those that do not, or did not just now, are left out.

    Where none speaks the silent ones are asked: they may speak again.
    """
    speaking, silent, leaving = await pool.replicas()
    return await ask_some(pool, (*speaking, *leaving) or silent, method, *arguments)


async def any_answers(pool: ReplicaPool) -> bool:
    """Whether a replica that stays answers: however many there are, few are asked."""
    speaking, silent, _ = await pool.replicas()
    for at in range(0, len(among := (*speaking, *silent)), ASKED_AT_ONCE):
        if await ask_some(pool, among[at : at + ASKED_AT_ONCE], "room"):
            return True
    return False


async def roomiest(pool: ReplicaPool, contacts: Contacts, slots: int) -> str | None:
    """Of the replicas that stay, the one with most free slots; None where none has so many."""
    rooms = await _rooms(pool, by_room(contacts.rooms((await pool.replicas()).speaking)))
    return next((replica for replica in by_room(rooms) if rooms[replica] >= slots), None)


async def ask_some(pool: ReplicaPool, replicas: Sequence[str], method: str, *arguments: Any) -> dict[str, Any]:
    """What each of these answers within a second."""

    async def ask(replica: str) -> Any:
        try:
            return await pool.call(replica, method, *arguments, timeout_s=ANSWER_S)
        except ReplicaLost as lost:
            logger.warning("replica left out", extra={"replica": replica, "why": str(lost)})
            return None

    answers = await asyncio.gather(*(ask(replica) for replica in replicas))
    return {replica: answer for replica, answer in zip(replicas, answers, strict=True) if answer is not None}


async def prepare(
    pool: ReplicaPool,
    contacts: Contacts,
    attempt: str,
    spec: SessionSpec,
    cues: Sequence[Cue] = (),
    resume: ResumeState | None = None,
    *,
    owner: EpochRecord | None = None,
    avoid: str | None = None,
    tried: Callable[[str], None],
    timeout_s: float,
) -> Prepared:
    """A copy of a session on the replica with most free slots; where that fails, on the next one.

    Few are asked: `contacts` know how many the replicas had when they last answered, and a replica that has none
    refuses.
    Those that were silent just now come behind the others, then those that leave, and of all others `avoid`.
    `tried` is told each replica before it is called, so that it can be told of a cancellation. Raises SlotsFull if
    all are full, ReplicaLost if none answers, and at once what a request for a new session is refused with. One
    that has an `owner` was open before: whatever one replica refuses it for, another may open it.
    """
    epoch = 0 if owner is None else owner.epoch
    attempt_of_owner = owner.record.attempt if owner is not None and isinstance(owner.record, Owner) else None
    refused: Exception = none_answers("denoiser")
    for among in await pool.replicas():
        for replica in await _by_room(pool, contacts, among, avoid):
            tried(replica)
            contacts.opening(replica)
            arguments = (attempt, spec, tuple(cues), resume, epoch, attempt_of_owner, inside(timeout_s))
            try:
                prepared: Prepared = await pool.call(replica, "prepare", *arguments, timeout_s=timeout_s)
            except OF_ONE_REPLICA as error:
                refused = error
            except (ServingError, EngineError) as error:
                if owner is None:
                    raise
                refused = error
            except Exception as error:
                logger.exception("a replica failed to open a session", extra={"replica": replica})
                refused = error
            else:
                return prepared
    raise refused


async def _by_room(pool: ReplicaPool, contacts: Contacts, among: Sequence[str], avoid: str | None) -> list[str]:
    known = by_room(contacts.rooms(among), avoid)
    return [*by_room(await _rooms(pool, known), avoid), *known[ASKED_FIRST:]]


async def _rooms(pool: ReplicaPool, ranked: Sequence[str]) -> dict[str, int]:
    """What the first of them say that they could still open."""
    return await ask_some(pool, ranked[:ASKED_FIRST], "room")
