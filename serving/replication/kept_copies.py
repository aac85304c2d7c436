"""Standby copies that a manager has kept of sessions which other managers have adopted.

Those have nothing of a session until its owner has fed them. Where the owner is lost first, a manager that has
kept a copy takes the session up again: the one with the newest, if that is there.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from serving.replication.adoption import Adopt
from serving.replication.leases import LeaseConfig
from serving.replication.register import EpochRecord, Owner
from serving.replication.standby import StandbyCopy


class KeptCopy(NamedTuple):
    """A copy that was full as of an `epoch`.

    It `is_newest` unless a manager that is there may have one of a later epoch.
    """

    epoch: int
    is_newest: bool

    @classmethod
    def of(cls, owner: Owner, manager: str, epoch: int, managers: Collection[str] | None) -> KeptCopy:
        """What the `manager` has of a session. `managers` are those that are there; None where nobody can say."""
        later = {standby.manager for standby in owner.standbys if standby.epoch > epoch} - {manager}
        return cls(epoch, is_newest=not later if managers is None else later.isdisjoint(managers))


def decide_kept(
    config: LeaseConfig, top: EpochRecord, manager: str, kept: KeptCopy, *, is_forsaken: bool, wanted_for_s: float
) -> Adopt | None:
    """What a manager does about a session of which it has `kept` a copy.

    It is `is_forsaken` if the owner's process is known to be dead, and the standby is not there any more. Where
    another manager may have a newer copy, a session that is wanted is left to that for a while.
    """
    if not isinstance(top.record, Owner) or not (top.record.is_gone or is_forsaken):
        return None
    if not kept.is_newest and wanted_for_s < config.newer_copy_wait_s:
        return None
    return Adopt.next(top.epoch, top.record, manager, is_gone=True)


@dataclass
class _Kept:
    copy: StandbyCopy
    epoch: int
    until: float
    wanted_since: float | None = None


class KeptCopies:
    """Those of one manager. `now` is its monotonic clock, in seconds."""

    def __init__(self, config: LeaseConfig, manager: str) -> None:
        self._config, self._manager = config, manager
        self._kept: dict[str, _Kept] = {}

    @property
    def sessions(self) -> list[str]:
        """Of which a copy is kept."""
        return list(self._kept)

    def keep(self, session_id: str, copy: StandbyCopy, epoch: int, now: float) -> None:
        """Another manager has adopted a session of which there is a copy, full as of an `epoch`."""
        self._kept[session_id] = _Kept(copy, epoch, now + self._config.standby_expires_s)

    def of(self, session_id: str, owner: Owner, managers: Collection[str] | None) -> KeptCopy | None:
        """What there is of a session that is to be adopted; see `KeptCopy.of`."""
        kept = self._kept.get(session_id)
        return None if kept is None else KeptCopy.of(owner, self._manager, kept.epoch, managers)

    def take(self, session_id: str) -> StandbyCopy:
        """The copy, which is kept here no more."""
        return self._kept.pop(session_id).copy

    def look(
        self,
        session_id: str,
        top: EpochRecord | None,
        managers: Collection[str] | None,
        dead: Collection[str],
        now: float,
    ) -> Adopt | None:
        """What to do about a session, by its latest epoch; a copy that nobody needs any more is let go.

        Replicas that are `dead` are known to be.
        """
        kept = self._kept.get(session_id)
        if kept is None:
            return None
        if top is None or not isinstance(top.record, Owner) or now > kept.until:
            self.take(session_id).close()
            return None
        owner = top.record
        # A copy is kept here only where this manager is its session's standby no more, whatever the register says.
        has_standby = managers is None or owner.standby in set(managers) - {self._manager}
        is_forsaken = owner.replica in dead and not has_standby
        if not (owner.is_gone or is_forsaken):
            kept.wanted_since = None
            return None
        kept.wanted_since = now if kept.wanted_since is None else kept.wanted_since
        wanted_for_s, copy = now - kept.wanted_since, KeptCopy.of(owner, self._manager, kept.epoch, managers)
        return decide_kept(
            self._config, top, self._manager, copy, is_forsaken=is_forsaken, wanted_for_s=wanted_for_s
        )

    def close(self) -> None:
        """Let all of them go."""
        for session_id in self.sessions:
            self.take(session_id).close()
