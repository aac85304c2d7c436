"""Leases of a replica's copies, and of the streams it feeds: the replica's side of the ownership protocol.

No I/O: messages and a clock reading in, answers out. `now` is the monotonic clock of the replica's process, in
seconds; a reading is what that clock showed, carried by a manager from the replica's last answer to its next call.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import pydantic.dataclasses
from pydantic import ConfigDict

MAX_LEASE_S = 60.0
REMEMBER_ATTEMPTS_S = 120.0
"""How long an attempt that has ended cannot begin again: longer than a call to prepare one can be on its way."""


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LeaseConfig:
    """The length of a lease, from which the other times follow, and how long a copy may take to be prepared."""

    lease_s: float = 2.0
    prepare_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.lease_s <= MAX_LEASE_S:
            raise ValueError(f"lease is {self.lease_s:g} s; it must be above 0 and at most {MAX_LEASE_S:g} s")
        if self.prepare_timeout_s <= 0:
            raise ValueError(f"prepare timeout is {self.prepare_timeout_s:g} s; it must be above 0")

    @property
    def renew_every_s(self) -> float:
        """How often a manager calls each replica."""
        return self.lease_s / 4

    @property
    def yield_timeout_s(self) -> float:
        """How long a copy that is to move may take to deliver the blocks that are on their way."""
        return 2 * self.prepare_timeout_s

    @property
    def move_again_s(self) -> float:
        """How long a copy is left alone that has yielded in vain: it has stood still meanwhile."""
        return 5 * self.lease_s

    @property
    def beat_every_s(self) -> float:
        """How often a stream without news says that its replica lives."""
        return self.lease_s / 4

    @property
    def feed_silence_s(self) -> float:
        """Silence after which a feed is opened again: that its replica is silent, the leases notice before."""
        return 5 * self.lease_s

    @property
    def doubt_after_s(self) -> float:
        """Silence of a replica after which its manager prepares another copy."""
        return 0.4 * self.lease_s

    @property
    def takeover_wait_s(self) -> float:
        """Silence after which no lease is left, on clocks that run up to 1 % apart."""
        return 1.1 * self.lease_s

    @property
    def behind_wait_s(self) -> float:
        """The same where the standby copy lacks what its owner has done since its feed broke."""
        return 5 * self.lease_s

    @property
    def stream_timeout_s(self) -> float:
        """Silence of a manager after which its streams end and count no viewer."""
        return 1.5 * self.lease_s

    @property
    def orphan_after_s(self) -> float:
        """Silence of its manager after which a committed copy asks for another one."""
        return 1.5 * self.lease_s

    @property
    def depart_again_s(self) -> float:
        """The same of one that another server has not taken: by then that has forgotten that it was to come."""
        return 60 * self.lease_s

    @property
    def look_after_s(self) -> float:
        """Time without a lease after which any copy asks a manager to look for it in the register."""
        return 5 * self.lease_s

    @property
    def look_every_s(self) -> float:
        """How often a manager looks there whether it is still the standby: what nobody has told it shows there."""
        return 2.5 * self.lease_s

    @property
    def newer_copy_wait_s(self) -> float:
        """How long a session whose last owner is gone is left to a manager that may have kept a newer copy."""
        return 5 * self.lease_s

    @property
    def copy_wanted_s(self) -> float:
        """How long a session whose last owner is gone waits for another manager that has kept a copy of it."""
        return 15 * self.lease_s

    @property
    def standby_expires_s(self) -> float:
        """How long a session may wait for a replica; then it is lost."""
        return 100 * self.lease_s


class CopyLease(NamedTuple):
    """A copy whose lease a manager renews. `given_up` is the last of its moves that came to nothing.

    One that is `held` for another server is told so, and its lease ends. `is_copied` where the manager has a full
    standby copy of it.
    """

    session_id: str
    attempt: str
    epoch: int
    given_up: int = 0
    held: bool = False
    is_copied: bool = False


class RenewRequest(NamedTuple):
    """All that one manager renews on one replica.

    `reading` is the replica's clock as of its last answer to this manager; None at first contact, which renews
    nothing yet. `streams` are those that the manager reads. One that is `leaving` renews until another one has
    adopted its copies.
    """

    manager: str
    replica: str
    reading: float | None
    copies: tuple[CopyLease, ...] = ()
    streams: tuple[str, ...] = ()
    leaving: bool = False


class CopyReport(NamedTuple):
    """The highest epoch that a copy knows of itself; None where the copy is not there and never will be.

    It `wants_room` where it was to be resumed, and its replica has no slot for it.
    """

    session_id: str
    attempt: str
    epoch: int | None
    wants_room: bool = False


class Orphan(NamedTuple):
    """A copy that nobody renews, or soon nobody will. `epoch` is None if none is known to be committed.

    `copied_at` is the last epoch whose standby had a full copy, or was sent one; None as long as neither is known.
    """

    session_id: str
    attempt: str
    epoch: int | None
    without_lease_s: float
    copied_at: int | None = None


class RenewAnswer(NamedTuple):
    """A report for each copy of the request, and every copy of the replica that is in want of a manager.

    `room` is how many sessions could be opened.
    """

    reading: float
    copies: tuple[CopyReport, ...]
    orphans: tuple[Orphan, ...]
    room: int = 0


@dataclass
class _Copy:
    session_id: str
    heard_at: float
    lease_end: float
    epoch: int | None = None
    copied_at: int | None = None
    standby: str | None = None
    is_offered: bool = False
    move: int = 0
    """The last one at this epoch that was heard of."""
    has_yielded: bool = False


class StreamLeases:
    """Which streams somebody still reads."""

    def __init__(self, config: LeaseConfig) -> None:
        self._timeout_s = config.stream_timeout_s
        self._alive_at: dict[str, float] = {}

    def opened(self, stream: str, now: float) -> None:
        """A stream has begun."""
        self._alive_at[stream] = now

    def is_open(self, stream: str) -> bool:
        """Whether it has begun and not ended."""
        return stream in self._alive_at

    def closed(self, stream: str) -> None:
        """A stream has ended."""
        self._alive_at.pop(stream, None)

    def renew(self, streams: Iterable[str], reading: float) -> None:
        """They were read when the replica's clock showed `reading`; unknown ones are not begun by it."""
        for stream in streams:
            if stream in self._alive_at:
                self._alive_at[stream] = max(self._alive_at[stream], reading)

    def expired(self, now: float) -> list[str]:
        """Streams that must be closed."""
        return [stream for stream, at in self._alive_at.items() if now - at > self._timeout_s]


class ReplicaLeases:
    """What a replica knows of its copies: who is the standby, and until when each may make and send anything.

    A copy whose session is over must not merely vanish: its manager would open it again elsewhere. The end is
    committed in the register first.
    """

    def __init__(self, config: LeaseConfig) -> None:
        self._config = config
        self._copies: dict[str, _Copy] = {}
        self._gone_at: dict[str, float] = {}
        self._fenced: list[str] = []
        self.streams = StreamLeases(config)

    def prepared(self, session_id: str, attempt: str, now: float) -> bool:
        """A copy has been made. False if it must go at once: its attempt has ended meanwhile, or before."""
        self._forget_attempts(now)
        if attempt in self._gone_at:
            return False
        self._copies.setdefault(attempt, _Copy(session_id, heard_at=now, lease_end=now))
        return True

    def renew(self, request: RenewRequest, now: float) -> RenewAnswer:
        """Renew the leases that a manager is entitled to renew."""
        reports = tuple(self._renew_copy(lease, request, now) for lease in request.copies)
        if request.reading is not None:
            self.streams.renew(request.streams, request.reading)
        return RenewAnswer(now, reports, tuple(self.orphans(now)))

    def yield_lease(self, attempt: str, epoch: int, move: int, now: float) -> bool:
        """End the copy's lease, which its manager at `epoch` renews no more unless it gives up this move of it.

        False where that is not to be: at another epoch, or where the move was given up before this call came.
        """
        copy = self._copies.get(attempt)
        if copy is None or copy.epoch != epoch or move <= copy.move:
            return False
        copy.move, copy.has_yielded, copy.lease_end = move, True, min(copy.lease_end, now)
        return True

    def cancel(self, attempt: str, now: float) -> None:
        """The manager that prepared the copy will not commit it; a committed one is not affected."""
        self.drop(attempt, 0, now)

    def drop(self, attempt: str, epoch: int, now: float) -> None:
        """At `epoch`, the register says, the copy is not the owner: it ends unless a higher epoch made it so."""
        copy = self._copies.get(attempt)
        if copy is None or (copy.epoch or 0) <= epoch:
            self._end(attempt, now)

    def fence(self, session_id: str, epoch: int, attempt: str | None, now: float) -> None:
        """`epoch` is committed with `attempt`, or as the session's end: what was committed before it ends."""
        for name, copy in list(self._copies.items()):
            committed_before = copy.epoch is not None and copy.epoch <= epoch
            if copy.session_id == session_id and name != attempt and (committed_before or attempt is None):
                self._end(name, now)

    def closed(self, attempt: str, now: float) -> None:
        """The copy was closed by the replica itself."""
        self._copies.pop(attempt, None)
        self._gone_at[attempt] = now

    def feeds(self, attempt: str, manager: str) -> None:
        """All that there is of the copy leaves for a manager: it may have it before it renews the lease again."""
        copy = self._copies.get(attempt)
        if copy is not None and copy.standby == manager:
            copy.copied_at = copy.epoch

    def pop_fenced(self) -> list[str]:
        """Copies that have ended here since the last call; their slots are to be freed."""
        fenced, self._fenced = self._fenced, []
        return fenced

    def has_lease(self, attempt: str, now: float) -> bool:
        """Whether the copy may make, send and answer anything."""
        copy = self._copies.get(attempt)
        return copy is not None and now < copy.lease_end

    def epoch(self, attempt: str) -> int | None:
        """The highest epoch that the copy is known to be committed at."""
        copy = self._copies.get(attempt)
        return None if copy is None else copy.epoch

    def standby(self, attempt: str) -> str | None:
        """The manager of that epoch, which is to be fed."""
        copy = self._copies.get(attempt)
        return None if copy is None else copy.standby

    def orphans(self, now: float) -> list[Orphan]:
        """Copies that ask a manager to look for them in the register."""
        return [
            Orphan(copy.session_id, attempt, copy.epoch, max(0.0, now - copy.lease_end), copy.copied_at)
            for attempt, copy in self._copies.items()
            if self._is_orphan(copy, now)
        ]

    def _is_orphan(self, copy: _Copy, now: float) -> bool:
        unheard = copy.epoch is not None and now - copy.heard_at > self._config.orphan_after_s
        return copy.is_offered or unheard or now - copy.lease_end > self._config.look_after_s

    def _renew_copy(self, lease: CopyLease, request: RenewRequest, now: float) -> CopyReport:
        copy = self._copies.get(lease.attempt)
        if copy is None:
            # A call that prepares it may be on its way still; the manager is about to rely on its being nowhere.
            self._gone_at.setdefault(lease.attempt, now)
        elif copy.epoch is None or copy.epoch <= lease.epoch:
            self._note_moves(copy, lease)
            copy.epoch, copy.standby, copy.heard_at = lease.epoch, request.manager, now
            copy.is_offered = request.leaving
            if lease.is_copied:
                copy.copied_at = lease.epoch
            if lease.held:
                copy.lease_end = now
            elif request.reading is not None and request.reading <= now and not copy.has_yielded:
                copy.lease_end = max(copy.lease_end, self._lease_end(request.reading, now))
            self.fence(lease.session_id, lease.epoch, lease.attempt, now)
        return CopyReport(lease.session_id, lease.attempt, copy.epoch if copy is not None else None)

    def _note_moves(self, copy: _Copy, lease: CopyLease) -> None:
        """A copy that has yielded goes on where the move was given up, or where a later epoch names it again."""
        if copy.epoch is None or copy.epoch < lease.epoch:
            copy.move, copy.has_yielded = 0, False
        copy.has_yielded = copy.has_yielded and copy.move > lease.given_up
        copy.move = max(copy.move, lease.given_up)

    def _lease_end(self, reading: float, now: float) -> float:
        """Counted from the reading, not from `now`: nobody knows how long the call has been on its way."""
        return reading + self._config.lease_s

    def _end(self, attempt: str, now: float) -> None:
        if self._copies.pop(attempt, None) is not None:
            self._fenced.append(attempt)
        self._gone_at[attempt] = now

    def _forget_attempts(self, now: float) -> None:
        self._gone_at = {name: at for name, at in self._gone_at.items() if now - at < REMEMBER_ATTEMPTS_S}
