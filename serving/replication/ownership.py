"""Who may take a session over, and when: the manager's side of the ownership protocol.

Why at most one copy of a session has a lease: an epoch has one owner, and only the manager named in it grants that
owner leases, each of which ends at most L after a reading that the manager has received. Nobody but that manager
creates the next epoch with another copy; it stops renewing before it tries, and tries when the owner is known to
be gone, or 1.1 L after it received its last reading, when all that it granted has run out. What an earlier manager
granted to the same copy has run out as well: a copy that has answered at an epoch takes no renewal of a lower one,
and a manager that has adopted a copy waits for such an answer first. So when an epoch with a new copy begins, no
other copy has a lease, and none can get one.

A planned move ends the owner's lease sooner: a copy that has yielded takes no renewal at its epoch until the
manager says that it has given this move up, and from then on the manager does not commit what it has made.
An owner that has departed for another server is held by an epoch of its own, as `evacuation.py` says.

A manager that adopts a copy has none of its own until it was fed, and the standby before keeps what it has. If the
owner is lost first, its lease having run out, the next epoch says so, and a manager with a copy adopts it: the one
with the newest, if that is there. Every epoch names the standbys since the last that opened the session from its
copy, so that an old copy is known for one; it is used once the newer ones are gone, or do not come for too long.

No I/O: events and the manager's monotonic clock in, actions out. `leases.py` is the replica's side, `adoption.py`
what a manager does for copies that are not its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection
from dataclasses import replace
from enum import Enum

from serving.replication.actions import (
    Action,
    CancelAttempt,
    Commit,
    Depart,
    FollowRegister,
    LookInRegister,
    Move,
    Prepare,
    SessionLost,
    Settle,
)
from serving.replication.adoption import Adopt
from serving.replication.contacts import Contacts
from serving.replication.kept_copies import KeptCopy
from serving.replication.leases import CopyLease, CopyReport, LeaseConfig
from serving.replication.register import Destination, Ended, EpochRecord, Hold, Owner, Record


class Phase(Enum):
    """What a standby is doing about its session."""

    SERVING = "serving"
    PREPARING = "preparing"
    MOVING = "moving"
    HELD = "held"
    WANTED = "wanted"
    COMMITTING = "committing"
    RELEASED = "released"


class StandbyOwnership:
    """One manager's ownership of one session: as long as it lasts, the manager is the session's standby.

    Inputs return what is to be done now. `tick` is to be called each L/4 or more often, after the answers that
    have come in. The standby copy itself is kept by others; this class is only told how good it is. A replica that
    was known to be dead before it became the owner is to be reported once more. FollowRegister and SessionLost are
    the last that is to be done.
    """

    def __init__(
        self,
        config: LeaseConfig,
        contacts: Contacts,
        manager: str,
        session_id: str,
        now: float,
        adopt: Adopt | None = None,
        kept: KeptCopy | None = None,
        new_attempt: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        """Open a new session, whose standby copy is the request to open it; or else adopt a copy.

        This manager may have `kept` a standby copy of that from before.
        """
        self._config = config
        self._contacts = contacts
        self._manager = manager
        self.session_id = session_id
        self._new_attempt = new_attempt
        self.phase = Phase.SERVING if adopt is None else Phase.COMMITTING
        self.epoch = 0 if adopt is None else adopt.epoch - 1
        self.owner: Owner | None = None
        self._since = now
        # No copy yet is the same as a copy that is known to be gone.
        self._owner_gone = True
        self._owner_confirmed = False
        self._is_full = adopt is None or (kept is not None and (kept.is_newest or adopt.is_gone))
        self._is_behind = kept is not None
        self.copy_epoch = 0 if kept is None else kept.epoch
        """The last epoch at which the standby copy was full."""
        self._alive_at = now
        self._attempt: str | None = None
        self._prepare_at = now
        self.prepare_timeout_s = config.prepare_timeout_s
        """How long the next copy may take: twice as long as the last one that was too late."""
        self._leaving: Collection[str] = ()
        self._destination: Destination | None = None
        self._move = self._given_up = 0
        self._move_by = self._move_at = now
        self._has_yielded = False
        self._candidate: Owner | None = adopt.owner if adopt is not None else None
        self._candidate_at = now
        self._candidate_died = adopt is not None and adopt.is_gone
        self._pending = Commit(adopt.epoch, adopt.owner) if adopt is not None else None
        self._retry_at = now
        self._look_at = now + config.look_every_s

    # Queries

    def renewal(self) -> CopyLease | None:
        """What to renew at the owner's replica. Nothing from the first try to commit another copy on."""
        if self.owner is None or self._owner_gone or not self._is_open:
            return None
        held = self.phase is Phase.HELD
        return CopyLease(self.session_id, self.owner.attempt, self.epoch, self._given_up, held, self._is_full)

    def claims(self, attempt: str, replica: str) -> bool:
        """Whether the copy is the owner, or is to become it: not to be adopted or dropped by this manager.

        A replica that was too slow may have a copy of the owner's attempt, which another one made meanwhile. An
        owner that was given up may be adopted by anybody, if it is there after all.
        """
        owner = None if self.phase is Phase.WANTED else self.owner
        owners = [(found.attempt, found.replica) for found in (owner, self._candidate) if found is not None]
        return attempt == self._attempt or (attempt, replica) in owners

    def is_fed(self, epoch: int) -> bool:
        """Whether what the owner of `epoch` sends is kept: a copy that is being committed goes on without it."""
        return epoch == self.epoch and self._is_open

    # Inputs

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        match self.phase:
            case Phase.SERVING:
                return self._serve(now)
            case Phase.PREPARING:
                return self._prepare(now)
            case Phase.MOVING:
                return self._give_up_attempt(now) if self._moves_in_vain(now) else []
            case Phase.HELD:
                return [*self._settle(now), *self._look(now)]
            case Phase.WANTED:
                return self._wait_for_copy(now)
            case Phase.COMMITTING:
                return self._commit_again(now)
            case Phase.RELEASED:
                return []

    def leaving(self, replicas: Collection[str], now: float) -> list[Action]:
        """These replicas are being taken away: an owner there is moved while it can still say how it stands."""
        self._leaving = replicas
        return self.tick(now)

    def evacuate(self, destination: Destination | None) -> None:
        """The session is to go to another server, from the next tick on."""
        self._destination = destination

    def reported(self, report: CopyReport, now: float) -> list[Action]:
        """The owner's replica has answered, and Contacts has heard it before this call."""
        if self.owner is None or report.attempt != self.owner.attempt or not self._is_open:
            return []
        if report.epoch is None:
            self._owner_gone = True
        elif report.epoch > self.epoch:
            return self._release()
        elif report.epoch == self.epoch:
            self._alive_at = now
            self._confirm(now)
        return self.tick(now)

    def died(self, replica: str, now: float) -> list[Action]:
        """A live node reports that the replica's process is dead."""
        actions: list[Action] = []
        if self._candidate is not None and replica == self._candidate.replica:
            actions += self._candidate_is_dead(now)
        if self.owner is not None and replica == self.owner.replica and self._is_open:
            self._owner_gone = True
            actions += self.tick(now)
        return actions

    def fed(self, epoch: int, full: bool, now: float, *, is_news: bool = True) -> list[Action]:
        """The owner's stream of `epoch` has brought a delta; `full` once the full state has come.

        A heartbeat is no news: what is being prepared lacks nothing. What comes while another copy is being
        committed has come too late: that copy goes on without it.
        """
        if not self.is_fed(epoch):
            return []
        if full:
            self._is_full, self._is_behind = True, False
            self.copy_epoch = self.epoch
        self._alive_at = now
        self._confirm(now)
        # What is being prepared lacks it, and must not become the owner.
        return self._give_up_attempt(now) if is_news and self.phase is Phase.PREPARING else []

    def fell_behind(self, epoch: int, now: float) -> list[Action]:
        """The owner of `epoch` has gone on since its stream broke, and the copy lacks what it has done since."""
        if not self.is_fed(epoch):
            return []
        self._is_behind = True
        return self.tick(now)

    def end(self, reason: str, now: float) -> list[Action]:
        """The session is not to be opened again: it costs more than itself."""
        if not self._is_open or self.phase is Phase.HELD or self.epoch == 0:
            return []
        self._owner_gone = True
        cancelled = self._give_up_attempt(now) if self._attempt is not None else []
        return [*cancelled, *self._commit(Ended(reason, lost=True))]

    def prepared(self, attempt: str, replica: str, now: float) -> list[Action]:
        """The copy is ready on `replica`, and Contacts has heard the reading of its answer."""
        if not self.claims(attempt, replica):
            return [CancelAttempt(attempt)]
        # A first copy may take as long as its client waits.
        in_time = self.epoch == 0 or now - self._prepare_at <= self.prepare_timeout_s
        if self.phase is Phase.PREPARING and attempt == self._attempt and in_time:
            self._candidate, self._candidate_at = Owner(replica, attempt, self._manager), now
        return self.tick(now)

    def yielded(self, attempt: str, now: float) -> bool:
        """The owner has yielded and handed over how it stands, which is to be prepared elsewhere.

        False where the move was given up meanwhile.
        """
        if self.phase is not Phase.MOVING or attempt != self._attempt:
            return False
        self._move_by, self._has_yielded = now + self._config.prepare_timeout_s, True
        return True

    def moved(self, attempt: str, replica: str, now: float) -> list[Action]:
        """What the owner handed over is ready on `replica`, as `prepared` says."""
        if self.phase is not Phase.MOVING or attempt != self._attempt:
            return [] if self.claims(attempt, replica) else [CancelAttempt(attempt)]
        if now > self._move_by:
            return self._give_up_attempt(now)
        return self._commit(Owner(replica, attempt, self._manager))

    def departed(self, attempt: str, now: float) -> list[Action]:
        """The owner has yielded and said how it stands: nobody goes on here until the other server is asked."""
        if self.phase is not Phase.MOVING or attempt != self._attempt or self.owner is None:
            return []
        if now > self._move_by or self._destination is None:
            return self._give_up_attempt(now)
        return self._commit(replace(self.owner, held=Hold(self._destination, attempt)))

    def settled(self, begun: bool, now: float) -> list[Action]:
        """Whether the session has begun on the other server; if not it never will by this transfer."""
        if self.phase is not Phase.HELD or self.owner is None or self.owner.held is None:
            return []
        if begun:
            return self._commit(Ended("it goes on on another server", moved_to=self.owner.held.destination))
        return self._commit(replace(self.owner, held=None))

    def unsettled(self, now: float) -> list[Action]:
        """The other server did not answer."""
        if self.phase is Phase.HELD:
            self._retry_at = now + self._config.renew_every_s
        return []

    def prepare_failed(self, attempt: str, now: float) -> list[Action]:
        """No copy could be prepared there, or moved there. Another try follows after L/4, or if it yielded 5 L."""
        if self.phase not in (Phase.PREPARING, Phase.MOVING) or attempt != self._attempt:
            return []
        return self._give_up_attempt(now)

    def committed(self, epoch: int, won: bool, now: float) -> list[Action]:
        """The register has answered a Commit."""
        if self.phase is not Phase.COMMITTING or self._pending is None or epoch != self._pending.epoch:
            return []
        if not won:
            return self._release()
        if isinstance(self._pending.record, Ended):
            self.phase, ended = Phase.RELEASED, self._pending.record
            return [SessionLost(ended.reason) if ended.moved_to is None else FollowRegister()]
        return self._become_owner(self._pending.record, now)

    def commit_unreachable(self, now: float) -> list[Action]:
        """The register could not be reached. Whether the record is there, or will be, only asking again tells."""
        if self.phase is Phase.COMMITTING:
            self._retry_at = now + self._config.renew_every_s
        return []

    def looked(self, top: EpochRecord | None, now: float, managers: Collection[str] | None = None) -> list[Action]:
        """The register was read, and which `managers` there are; None where nobody can say.

        A session that the register does not know has ended long ago.
        """
        # A pending commit is answered by the register itself; an opening session is not there yet.
        if not (self._is_open or self.phase is Phase.WANTED) or self.epoch == 0:
            return []
        if top is None or top.epoch > self.epoch:
            return self._release()
        if self.phase is Phase.WANTED and self._is_old and self.owner is not None and managers is not None:
            kept = KeptCopy.of(self.owner, self._manager, self.copy_epoch, managers)
            return self._go_on_from_old(now) if kept.is_newest else []
        return self.tick(now)

    # Decisions

    @property
    def _is_open(self) -> bool:
        return self.phase in (Phase.SERVING, Phase.PREPARING, Phase.MOVING, Phase.HELD)

    @property
    def _is_old(self) -> bool:
        """Whether there is a copy, and another manager may have a newer one."""
        return self.copy_epoch > 0 and not self._is_full

    def _is_usable(self, now: float) -> bool:
        """Whether the standby copy may be opened: if it is behind, only once its owner is waited for no more."""
        is_waited_for = not self._owner_gone and self._silence(now) < self._config.behind_wait_s
        return self._is_full and not (self._is_behind and is_waited_for)

    def _is_lost(self, now: float) -> bool:
        """Whether there is nothing here to go on from, or no replica has taken the session for too long."""
        config, silent_s = self._config, now - self._alive_at
        if not self._is_full and self._owner_gone:
            return self.phase is not Phase.WANTED or silent_s > config.copy_wanted_s
        is_fenced = self._owner_confirmed and self._silence(now) >= config.behind_wait_s
        return (not self._is_full and is_fenced) or silent_s > config.standby_expires_s

    def _silence(self, now: float) -> float:
        assert self.owner is not None
        heard_at = self._contacts.heard_at(self.owner.replica)
        return now - (self._since if heard_at is None else max(heard_at, self._since))

    def _is_doubted(self, now: float) -> bool:
        return self._owner_gone or self._silence(now) >= self._config.doubt_after_s

    def _may_take_over(self, now: float) -> bool:
        """Whether the owner has no lease and will get none from this manager or an earlier one."""
        if self._owner_gone:
            return True
        return self._owner_confirmed and self._silence(now) >= self._config.takeover_wait_s

    def _may_move(self, now: float) -> bool:
        """Whether the owner has to go, and knows this epoch: no earlier manager can renew its lease."""
        has_to = self._destination is not None or self._leaves
        return has_to and self._owner_confirmed and now >= self._move_at

    def _moves_in_vain(self, now: float) -> bool:
        """Whether the move takes too long, or its owner is gone and what it would hand over has not come."""
        return now > self._move_by or (self._owner_gone and not self._has_yielded)

    @property
    def _leaves(self) -> bool:
        return self.owner is not None and self.owner.replica in self._leaving

    def _confirm(self, now: float) -> None:
        """The owner knows this epoch, so no lease of an earlier manager is left 1.1 L from now."""
        if not self._owner_confirmed:
            self._owner_confirmed, self._since = True, now

    def _serve(self, now: float) -> list[Action]:
        if self._is_doubted(now):
            if self._is_lost(now):
                return self._lose()
            if not self._is_usable(now):
                return self._look(now)
            if now >= self._retry_at:
                self.phase, self._attempt, self._prepare_at = Phase.PREPARING, self._new_attempt(), now
                return [Prepare(self._attempt, self.owner.replica if self.owner else None)]
        elif self._may_move(now):
            self.phase, self._attempt, self._move = Phase.MOVING, self._new_attempt(), self._move + 1
            self._move_by, self._has_yielded = now + self._config.yield_timeout_s, False
            if self._destination is None or self._leaves:
                return [Move(self._attempt, self._move)]
            return [Depart(self._attempt, self._move, self._destination)]
        return self._look(now)

    def _wait_for_copy(self, now: float) -> list[Action]:
        """Another manager may have a newer copy than the one that is here, if one is."""
        if self._is_old and now - self._alive_at >= self._config.newer_copy_wait_s:
            return self._go_on_from_old(now)
        return self._lose() if self._is_lost(now) else self._look(now)

    def _go_on_from_old(self, now: float) -> list[Action]:
        self.phase, self._is_full, self._owner_gone = Phase.SERVING, True, True
        return self._serve(now)

    def _settle(self, now: float) -> list[Action]:
        if now < self._retry_at or self.owner is None or self.owner.held is None:
            return []
        self._retry_at = float("inf")
        return [Settle(self.owner.held)]

    def _look(self, now: float) -> list[Action]:
        if now < self._look_at or self.epoch == 0:
            return []
        self._look_at = now + self._config.look_every_s
        return [LookInRegister()]

    def _prepare(self, now: float) -> list[Action]:
        if not self._is_doubted(now) or not self._is_usable(now) or self._is_lost(now):
            return [*self._give_up_attempt(now), *self._serve(now)]
        if self._candidate is None:
            is_late = now - self._prepare_at > self.prepare_timeout_s
            return self._give_up_attempt(now) if is_late else []
        # An old one may be about to be dropped for want of a lease; this process may have been stopped meanwhile.
        if now - self._candidate_at > self._config.look_after_s / 2:
            return self._give_up_attempt(now)
        return self._commit(self._candidate) if self._may_take_over(now) else []

    def _give_up_attempt(self, now: float) -> list[Action]:
        attempt, self._attempt, self._candidate = self._attempt, None, None
        if self.phase is Phase.MOVING:
            again_s = self._config.move_again_s if self._has_yielded else self._config.renew_every_s
            self._move_at, self._given_up = now + again_s, self._move
        elif now - self._prepare_at >= self.prepare_timeout_s:
            # Many sessions at once on a replica that has just begun: each of them has to wait for others.
            self.prepare_timeout_s = min(2 * self.prepare_timeout_s, self._config.standby_expires_s)
        self.phase, self._retry_at = Phase.SERVING, now + self._config.renew_every_s
        return [CancelAttempt(attempt)] if attempt is not None else []

    def _commit(self, record: Record) -> list[Action]:
        self.phase, self._pending = Phase.COMMITTING, Commit(self.epoch + 1, record)
        self._retry_at = float("inf")
        return [self._pending]

    def _commit_again(self, now: float) -> list[Action]:
        if self._pending is None or now < self._retry_at:
            return []
        self._retry_at = float("inf")
        return [self._pending]

    def _candidate_is_dead(self, now: float) -> list[Action]:
        if self.phase is Phase.PREPARING:
            return self._give_up_attempt(now)
        # The epoch may be committed already; if it is, its owner is known to be gone.
        self._candidate_died = self.phase is Phase.COMMITTING
        return []

    def _become_owner(self, owner: Owner, now: float) -> list[Action]:
        was_held = self.owner is not None and self.owner.held is not None
        self.phase = Phase.SERVING if owner.held is None else Phase.HELD
        if owner.is_gone:
            self.phase = Phase.WANTED
        is_same = self.owner is not None and owner.attempt == self.owner.attempt
        self._owner_gone, self._candidate_died = self._candidate_died or (is_same and self._owner_gone), False
        self.epoch, self.owner, self._since = self.epoch + 1, owner, now
        # Its own copy nobody else has renewed, or can without a higher epoch; one that it adopts somebody has.
        self._owner_confirmed = owner.attempt == self._attempt
        # What it opened from the standby copy, or from what goes with that, has nothing that the copy lacks.
        self._is_behind = self._is_behind and not self._owner_confirmed
        if self._is_full:
            self.copy_epoch = self.epoch
        # The register has just said that the session goes on.
        self._alive_at = now
        self._attempt = self._candidate = self._pending = None
        self._move = self._given_up = 0
        self.prepare_timeout_s = self._config.prepare_timeout_s
        self._move_at = now + (self._config.depart_again_s if was_held else 0)
        # Whether those are there that may have a newer copy shows at the next look.
        look_in_s = 0.0 if self.phase is Phase.WANTED and self._is_old else self._config.look_every_s
        self._retry_at, self._look_at = now, now + look_in_s
        return self.tick(now)

    def _lose(self) -> list[Action]:
        is_fenced = self._owner_gone or self._owner_confirmed
        if not self._is_full and self.owner is not None and not self.owner.is_gone and is_fenced:
            return self._commit(replace(self.owner, is_gone=True))
        reason = "the replica is gone, and no complete copy of the session was elsewhere"
        if self._is_full:
            reason = f"no replica took the session within {self._config.standby_expires_s:g} s"
        if self.epoch == 0:
            self.phase = Phase.RELEASED
            return [SessionLost(reason)]
        return self._commit(Ended(reason, lost=True))

    def _release(self) -> list[Action]:
        attempt, self._attempt, self._candidate = self._attempt, None, None
        self.phase = Phase.RELEASED
        return [*([CancelAttempt(attempt)] if attempt is not None else []), FollowRegister()]
