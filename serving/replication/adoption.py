"""What a manager does about copies whose own manager is gone."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from serving.replication.leases import LeaseConfig, Orphan
from serving.replication.register import EpochRecord, Owner, StandbyEpoch

MOST_STANDBYS = 8
"""Of those before, that a record names."""


class Adopt(NamedTuple):
    """Create the epoch; if that succeeds, be the standby of a copy that goes on where it is.

    One that `is_gone` has no lease and gets none: the session goes on from what this manager has kept of it.
    """

    epoch: int
    owner: Owner
    is_gone: bool = False

    @classmethod
    def next(cls, epoch: int, owner: Owner, manager: str, *, is_gone: bool = False) -> Adopt:
        """The one after `epoch`, with the manager as the standby of its `owner`."""
        return cls(epoch + 1, replace(owner, standby=manager, is_gone=False), is_gone)


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
    if top.record.standby == manager and not top.record.is_gone:
        # A commit of its own that it has not heard back from.
        return Adopt(top.epoch, top.record)
    if top.epoch != orphan.epoch and orphan.without_lease_s < config.orphan_after_s:
        return None
    standbys = top.record.standbys
    if not top.record.is_gone and _may_have_copy(top, orphan):
        standbys = (*standbys, StandbyEpoch(top.record.standby, top.epoch))[-MOST_STANDBYS:]
    return Adopt.next(top.epoch, replace(top.record, standbys=standbys), manager)


def decide_forsaken(top: EpochRecord | None, owner: Owner, manager: str, *, is_gone: bool) -> Adopt | None:
    """What a manager does about a session whose standby is gone, and was so some time ago, under the same `owner`.

    A replica that is there may yet say whether it has the owner. Where that `is_gone` too the session goes on from
    a copy that somebody has kept, or it is told that it is lost.
    """
    if top is None or top.record != owner:
        return None
    return Adopt.next(top.epoch, owner, manager, is_gone=is_gone)


def _may_have_copy(top: EpochRecord, orphan: Orphan) -> bool:
    """Whether the standby of the latest epoch has a full copy, or nobody has heard yet whether it has."""
    return orphan.epoch != top.epoch or orphan.copied_at is None or orphan.copied_at >= top.epoch


def _is(owner: Owner, replica: str, attempt: str) -> bool:
    return (owner.replica, owner.attempt) == (replica, attempt)
