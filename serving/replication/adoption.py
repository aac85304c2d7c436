"""What a manager does about copies whose own manager is gone."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from serving.replication.leases import LeaseConfig, Orphan
from serving.replication.register import EpochRecord, Owner


class Adopt(NamedTuple):
    """Create the epoch; if that succeeds, be the standby of a copy that goes on where it is.

    One that `is_gone` has no lease and gets none: the session goes on from what this manager has kept of it.
    """

    epoch: int
    owner: Owner
    is_gone: bool = False


class Drop(NamedTuple):
    """Tell the replica to drop the attempt, as `ReplicaLeases.drop` does."""

    attempt: str
    epoch: int


def decide_orphan(
    config: LeaseConfig, top: EpochRecord | None, orphan: Orphan, replica: str, manager: str
) -> Adopt | Drop | None:
    """What a manager does about a copy that is in want of one and that it does not claim itself.

    None where it is the turn of another one, which has committed the copy and may not have got to renew it yet.
    """
    # One attempt may have been sent to a second replica, where the first had not answered in time.
    if top is None or not isinstance(top.record, Owner) or not _is(top.record, replica, orphan.attempt):
        return Drop(orphan.attempt, top.epoch if top is not None else orphan.epoch or 0)
    owner = replace(top.record, standby=manager, is_gone=False)
    if top.record == owner:
        # A commit of its own that it has not heard back from.
        return Adopt(top.epoch, owner)
    if top.epoch != orphan.epoch and orphan.without_lease_s < config.orphan_after_s:
        return None
    return Adopt(top.epoch + 1, owner)


def decide_kept(top: EpochRecord, manager: str, *, is_forsaken: bool) -> Adopt | None:
    """What a manager does about a session of which it has kept a copy since another one adopted it.

    It is `is_forsaken` if the owner's process is known to be dead, and the standby is not there any more.
    """
    if not isinstance(top.record, Owner) or not (top.record.is_gone or is_forsaken):
        return None
    return Adopt(top.epoch + 1, replace(top.record, standby=manager, is_gone=False), is_gone=True)


def _is(owner: Owner, replica: str, attempt: str) -> bool:
    return (owner.replica, owner.attempt) == (replica, attempt)
