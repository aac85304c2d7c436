"""Processes of the simulated cluster: managers and replicas around the real protocol, each with its own clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from serving.errors import RegisterUnavailable
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
from serving.replication.adoption import Adopt, Drop, decide_forsaken, decide_orphan
from serving.replication.contacts import Contacts
from serving.replication.kept_copies import KeptCopy, decide_kept
from serving.replication.leases import Orphan, RenewAnswer, RenewRequest
from serving.replication.ownership import Phase, StandbyOwnership
from serving.replication.register import Ended, EpochRecord, Hold, Owner, Record, Register
from tests.serving.replication.simulated_log import EMPTY, Command, Frame, Log, frame_event, state_event

if TYPE_CHECKING:
    from tests.serving.replication.simulation import World

TICK_S = 0.2
ASK_S = 3.0
SLOTS = 4
REPLICATED_WITHIN_S = 0.5


class Process:
    """Something with a clock of its own that can be stopped and killed."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.is_dead = False
        self.paused_until = 0.0
        self._rate = 1 + world.rnd.uniform(-0.01, 0.01)
        self._offset = world.rnd.uniform(0, 1000)
        self._inbox: deque[Callable[[], None]] = deque()

    @property
    def clock(self) -> float:
        return self._offset + self.world.now * self._rate

    @property
    def runs(self) -> bool:
        return not self.is_dead and self.paused_until <= self.world.now

    def receive(self, message: Callable[[], None]) -> None:
        self._inbox.append(message)

    def step(self) -> None:
        """Timers and messages in either order, as after a pause they are."""
        timers_first = self.world.rnd.random() < 0.5
        if timers_first:
            self.on_time()
        while self._inbox and not self.is_dead:
            self._inbox.popleft()()
        if not timers_first and not self.is_dead:
            self.on_time()

    def on_time(self) -> None:
        raise NotImplementedError


@dataclass
class Stream:
    """What a viewer reads of a copy: all from `next_frame` on."""

    number: int
    next_frame: int
    is_begun: bool = False


@dataclass(frozen=True)
class Unanswered:
    """A command that waits until the standby has so many entries of the log."""

    id: str
    client: str
    entries: int
    until: float


@dataclass
class Copy:
    """The state of a session on a replica."""

    session: str
    log: Log
    made_at: float
    """In the world's time."""
    receipts: set[str]
    """The commands that were applied."""
    streams: dict[str, Stream] = field(default_factory=dict)
    """By viewer."""
    unanswered: list[Unanswered] = field(default_factory=list)


class Replica(Process):
    """A denoiser process."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.leases = world.rules.leases(world.rules.config)
        self.copies: dict[str, Copy] = {}
        self._work_at = 0.0

    def leased(self) -> list[Copy]:
        now = self.clock
        return [copy for attempt, copy in self.copies.items() if self.leases.has_lease(attempt, now)]

    def on_time(self) -> None:
        if self.world.now < self._work_at:
            return
        self._work_at = self.world.now + self.world.rnd.uniform(0.2, 0.6)
        for attempt, copy in self.copies.items():
            standby, epoch = self.leases.standby(attempt), self.leases.epoch(attempt)
            if standby is None or epoch is None:
                continue
            if self.leases.has_lease(attempt, self.clock):
                self._add(attempt, copy, Frame(len(copy.log.frames), attempt))
            else:
                self._send(standby, "on_beat", copy.session, epoch)
            for waiting in [waiting for waiting in copy.unanswered if waiting.until <= self.clock]:
                self._answer(copy, waiting, None)

    def _add(self, attempt: str, copy: Copy, entry: Frame | Command) -> None:
        """The delta leaves before the event that reveals it."""
        copy.log = copy.log.with_entry(entry)
        standby, epoch = self.leases.standby(attempt), self.leases.epoch(attempt)
        assert standby is not None
        self._send(standby, "on_delta", copy.session, epoch, copy.log)
        self._publish(attempt, copy)

    def _publish(self, attempt: str, copy: Copy) -> None:
        if not self._may_send(attempt):
            return
        frames = copy.log.frames
        for viewer, stream in copy.streams.items():
            events = [] if stream.is_begun else [state_event(len(frames))]
            events += map(frame_event, frames[stream.next_frame :])
            if events:
                self.world.check_sends(copy.session, self, attempt)
                self._send(viewer, "on_events", stream.number, events)
            stream.is_begun, stream.next_frame = True, max(stream.next_frame, len(frames))

    def _may_send(self, attempt: str) -> bool:
        return self.leases.has_lease(attempt, self.clock)

    def on_subscribe(self, viewer: str, attempt: str, number: int, from_frame: int) -> None:
        copy = self.copies.get(attempt)
        if copy is not None and (viewer not in copy.streams or copy.streams[viewer].number < number):
            copy.streams[viewer] = Stream(number, from_frame)
            self._publish(attempt, copy)

    def on_command(self, client: str, attempt: str, command: str) -> None:
        copy = self.copies.get(attempt)
        if copy is None or not self.leases.has_lease(attempt, self.clock):
            return
        if command not in copy.receipts:
            copy.receipts.add(command)
            self._add(attempt, copy, Command(command, attempt))
            until = self.clock + REPLICATED_WITHIN_S
            copy.unanswered.append(Unanswered(command, client, len(copy.log), until))
        elif all(waiting.id != command for waiting in copy.unanswered):
            self._send(client, "on_receipt", command)

    def on_acknowledged(self, manager: str, attempt: str, entries: int) -> None:
        if (copy := self.copies.get(attempt)) is not None:
            for waiting in [waiting for waiting in copy.unanswered if waiting.entries <= entries]:
                self._answer(copy, waiting, manager)

    def _answer(self, copy: Copy, waiting: Unanswered, standby: str | None) -> None:
        """The receipt says `replicated` if there is a standby that has the command."""
        copy.unanswered.remove(waiting)
        self.world.note_receipt(copy.session, waiting.id, standby)
        self._send(waiting.client, "on_receipt", waiting.id)

    def on_prepare(self, manager: str, session: str, attempt: str, log: Log) -> None:
        if len(self.copies) >= SLOTS or not self.leases.prepared(session, attempt, self.clock):
            self._send(manager, "on_prepare_failed", session, attempt)
            return
        self.copies.setdefault(attempt, Copy(session, log, self.world.now, self._receipts(log)))
        self._send(manager, "on_prepared", session, attempt, self.name, self.clock)

    def _receipts(self, log: Log) -> set[str]:
        """Those of a copy that is opened from a log."""
        return set(log.commands)

    def on_yield(self, manager: str, session: str, attempt: str, epoch: int, move: int, to: str) -> None:
        copy = self.copies.get(attempt)
        if copy is None or not self.leases.yield_lease(attempt, epoch, move, self.clock):
            self._send(manager, "on_prepare_failed", session, to)
            return
        self._send(manager, "on_yielded", session, to, copy.log)

    def on_depart(self, manager: str, session: str, attempt: str, epoch: int, move: int, to: str) -> None:
        copy = self.copies.get(attempt)
        if copy is None or not self.leases.yield_lease(attempt, epoch, move, self.clock):
            self._send(manager, "on_prepare_failed", session, to)
            return
        self._send(manager, "on_departed", session, to, copy.log)

    def on_cancel(self, attempt: str) -> None:
        self.leases.cancel(attempt, self.clock)
        self._free()

    def on_drop(self, attempt: str, epoch: int) -> None:
        self.leases.drop(attempt, epoch, self.clock)
        self._free()

    def on_fence(self, session: str, epoch: int) -> None:
        self.leases.fence(session, epoch, None, self.clock)
        self._free()

    def on_renew(self, request: RenewRequest, stores: dict[str, Log | None]) -> None:
        answer = self.leases.renew(request, self.clock)
        for lease in request.copies:
            is_heard = self.leases.standby(lease.attempt) == request.manager
            if is_heard and lease.is_copied and (log := stores[lease.session_id]) is not None:
                self.world.fates[lease.session_id].copied[request.manager] = log
        self._free()
        self._send(request.manager, "on_answer", self.name, answer)

    def on_ask_state(self, manager: str, attempt: str) -> None:
        copy, epoch = self.copies.get(attempt), self.leases.epoch(attempt)
        if copy is not None and epoch is not None and self.leases.has_lease(attempt, self.clock):
            self.leases.feeds(attempt, manager)
            self._send(manager, "on_state", copy.session, epoch, copy.log)

    def _free(self) -> None:
        for attempt in self.leases.pop_fenced():
            self.copies.pop(attempt, None)

    def _send(self, to: str, method: str, *arguments: object) -> None:
        self.world.send(self.name, to, method, *arguments)


class OtherServer(Process):
    """Where sessions are evacuated to: it opens them at once, or is full. `begun` are what they began with."""

    def __init__(self, world: World, name: str, register: Register) -> None:
        super().__init__(world, name)
        self.register = register
        self.begun: dict[str, Log] = {}

    def on_time(self) -> None:
        self.world.finish(self.register.forget_ended())

    def on_offer(self, manager: str, session: str, transfer: str) -> None:
        is_known = self.world.finish(self.register.first(session)) is not None
        self._send(manager, "on_prepare_failed" if is_known else "on_offered", session, transfer)

    def on_import(self, manager: str, session: str, transfer: str, log: Log) -> None:
        is_full = self.world.is_faulty and self.world.rnd.random() < 0.2
        owner = Owner(self.name, transfer, self.name)
        begins = not is_full and self.world.finish(self.register.create(session, 1, owner))
        if begins:
            self.begun.setdefault(session, log)
            self._send(manager, "on_settled", session, transfer, True)
        else:
            self._send(manager, "on_refused", session, transfer)

    def on_settle(self, manager: str, session: str, transfer: str) -> None:
        try:
            begun = self.world.finish(self.world.rules.settle(self.register, session, transfer))
        except RegisterUnavailable:
            return
        self._send(manager, "on_settled", session, transfer, begun)

    def _send(self, to: str, method: str, *arguments: object) -> None:
        self.world.send(self.name, to, method, *arguments)


@dataclass
class Kept:
    """A standby copy that was full as of an epoch."""

    log: Log
    epoch: int
    wanted_since: float | None = None


class Manager(Process):
    """A session manager process."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.contacts = Contacts()
        self.roles: dict[str, StandbyOwnership] = {}
        self.stores: dict[str, Log | None] = {}
        """Standby copies; None where there is none yet."""
        self.kept: dict[str, Kept] = {}
        """Those of sessions that other managers have adopted."""
        self._look_at = 0.0
        self._sent_to: dict[str, str] = {}
        self._prepared_with: dict[str, Log] = {}
        self._yielded_to: set[str] = set()
        self._departed: dict[str, Log] = {}
        """What is to be sent to the other server, by transfer."""
        self._known_dead: set[str] = set()
        self.is_leaving = False
        self._looked_at: dict[str, float] = {}
        self._tick_at = self._renew_at = 0.0
        self._known: dict[str, Owner] = {}
        """Where viewers were sent to."""
        self._forsaken: dict[str, Owner] = {}
        """The sessions that seemed to have no standby when it looked last."""
        self._look_for_forsaken_at = world.now + world.rules.config.copy_wanted_s

    # What the world does to it

    def open(self, session: str) -> None:
        self.stores[session] = EMPTY
        self._begin(session, None)

    def delete(self, session: str) -> None:
        """Commit the end as the next epoch, however often that takes, and tell the owner."""

        def on_read(top: EpochRecord | None) -> None:
            if top is not None and isinstance(top.record, Owner) and top.record.held is None:
                owner, epoch = top.record, top.epoch + 1

                def on_created(won: bool) -> None:
                    if not won:
                        return self.delete(session)
                    return self._send(owner.replica, "on_fence", session, epoch)

                self._create(session, epoch, Ended(), on_created, again)
            elif top is not None and isinstance(top.record, Owner):
                self.world.at(self.world.now + 1, lambda: self.receive(again))

        def again() -> None:
            self.delete(session)

        self._read(session, on_read, again)

    def has_state(self, session: str, epoch: int) -> bool:
        """Whether it can, as far as is in its power, open the session whose latest epoch this is."""
        role = self.roles.get(session)
        if role is None or self.stores.get(session) is None:
            return False
        if role._pending is not None and isinstance(role._pending.record, Ended):
            return False
        commits = role.phase is Phase.COMMITTING
        return role.epoch + commits >= epoch and (commits or not role._is_lost(self.clock))

    def log_of(self, session: str) -> Log:
        """What its copy has, if there is one."""
        kept, store = self.kept.get(session), self.stores.get(session)
        return max(EMPTY if store is None else store, EMPTY if kept is None else kept.log, key=len)

    def has_moved(self, attempt: str) -> bool:
        """Whether it opened the attempt from what its owner has handed over."""
        return attempt in self._yielded_to

    def keeps(self, session: str) -> bool:
        """Whether it has, or will have once it has looked in the register, a copy that another one may need."""
        return session in self.kept or self.stores.get(session) is not None

    # Timers

    def on_time(self) -> None:
        if self.world.now >= self._tick_at:
            self._tick_at = self.world.now + TICK_S
            for session, role in list(self.roles.items()):
                if not self.is_dead:
                    role.evacuate(self.world.destination)
                    self._do(session, role.leaving(self.world.leaving, self.clock))
        if self.world.now >= self._renew_at and not self.is_dead:
            self._renew_at = self.world.now + self.world.rules.config.renew_every_s
            self._renew()
        if self.world.now >= self._look_at and not self.is_dead:
            self._look_at = self.world.now + self.world.rules.config.look_every_s
            for session in self.kept:
                self._read(session, partial(self._look_after_kept, session), lambda: None)
        if self.world.now >= self._look_for_forsaken_at and not self.is_dead:
            self._look_for_forsaken_at = self.world.now + self.world.rules.config.copy_wanted_s
            self.world.ask_register(self, self.world.open_sessions, self._look_for_forsaken, lambda: None)

    def _renew(self) -> None:
        leases = [(role.owner, lease) for role in self.roles.values() if (lease := role.renewal()) is not None]
        for replica in self._replicas():
            here = [lease for owner, lease in leases if owner is not None and owner.replica == replica]
            request = self.contacts.request(self.name, replica, here, leaving=self.is_leaving)
            self._send(replica, "on_renew", request, dict(self.stores))
        for role in self.roles.values():
            if role.owner is not None and (role._is_behind or not role._is_full):
                self._send(role.owner.replica, "on_ask_state", self.name, role.owner.attempt)

    # Messages

    def on_answer(self, replica: str, answer: RenewAnswer) -> None:
        if not self.contacts.heard(replica, answer.reading, self.clock):
            return
        for report in answer.copies:
            if (role := self.roles.get(report.session_id)) is not None:
                self._do(report.session_id, role.reported(report, self.clock))
        for orphan in answer.orphans:
            self._look_for(orphan, replica)

    def on_prepared(self, session: str, attempt: str, replica: str, reading: float) -> None:
        self.contacts.heard(replica, reading, self.clock)
        if (role := self.roles.get(session)) is not None:
            ready = role.moved if attempt in self._yielded_to else role.prepared
            self._do(session, ready(attempt, replica, self.clock))
        else:
            self._send(replica, "on_cancel", attempt)

    def on_yielded(self, session: str, attempt: str, log: Log) -> None:
        role = self.roles.get(session)
        if role is None or role.phase is not Phase.MOVING or attempt != role._attempt:
            return
        self.world.counts["yielded"] += 1
        self._yielded_to.add(attempt)
        self.world.on_yielded(self)
        # A copy yields once its standby has everything.
        self.stores[session] = log
        self._do(session, role.fed(role.epoch, True, self.clock))
        role.yielded(attempt, self.clock)
        self._prepare_on(self._staying(), session, attempt)

    def on_departed(self, session: str, attempt: str, log: Log) -> None:
        role = self.roles.get(session)
        if role is None or role.phase is not Phase.MOVING or attempt != role._attempt:
            return
        self.stores[session] = self._departed[attempt] = log
        self._do(session, role.fed(role.epoch, True, self.clock))
        self.world.on_step(self, "departed")
        self._do(session, role.departed(attempt, self.clock))

    def on_settled(self, session: str, transfer: str, begun: bool) -> None:
        role = self.roles.get(session)
        held = role.owner.held if role is not None and role.owner is not None else None
        if role is None or held is None or held.transfer != transfer:
            return
        self.world.counts[f"settled {begun}"] += 1
        self.world.on_step(self, "settled")
        self._do(session, role.settled(begun, self.clock))

    def on_refused(self, session: str, transfer: str) -> None:
        self._send(self.world.other.name, "on_settle", self.name, session, transfer)

    def on_prepare_failed(self, session: str, attempt: str) -> None:
        if (role := self.roles.get(session)) is not None:
            self._do(session, role.prepare_failed(attempt, self.clock))

    def on_died(self, replica: str) -> None:
        self._known_dead.add(replica)
        for session, role in list(self.roles.items()):
            self._do(session, role.died(replica, self.clock))
            for attempt in [attempt for attempt, name in self._sent_to.items() if name == replica]:
                self._do(session, role.prepare_failed(attempt, self.clock))

    def on_delta(self, session: str, epoch: int, log: Log) -> None:
        if (role := self._fed_by(session, epoch)) is None:
            return
        store = self.stores.get(session)
        if store is not None and store.begins_with(log):
            return
        if store is not None and log.follows(store):
            self._take(session, role, log, full=not role._is_behind)
        else:
            self._do(session, role.fell_behind(epoch, self.clock))

    def on_beat(self, session: str, epoch: int) -> None:
        if (role := self._fed_by(session, epoch)) is not None:
            self._do(session, role.fed(epoch, role._is_full and not role._is_behind, self.clock, is_news=False))

    def on_state(self, session: str, epoch: int, log: Log) -> None:
        if (role := self._fed_by(session, epoch)) is None:
            return
        store = self.stores.get(session)
        if store is None or store == log or not store.begins_with(log):
            self._take(session, role, log, full=True)

    def _take(self, session: str, role: StandbyOwnership, log: Log, *, full: bool) -> None:
        self.stores[session] = log
        if full and role.owner is not None:
            self._send(role.owner.replica, "on_acknowledged", self.name, role.owner.attempt, len(log))
        self._do(session, role.fed(role.epoch, full, self.clock))

    def on_where(self, viewer: str, session: str, stream: int, anew: bool) -> None:
        """Say who the owner is, as far as this manager remembers, or by the register."""

        def on_read(top: EpochRecord | None) -> None:
            if top is not None and isinstance(top.record, Owner):
                self._known[session] = top.record
                self._send(viewer, "on_owner", stream, top.record)

        known = self._known.get(session)
        if known is None or anew:
            self._read(session, on_read, lambda: None)
        else:
            self._send(viewer, "on_owner", stream, known)

    def on_command(self, client: str, session: str, command: str) -> None:
        """Pass it on to the owner."""

        def on_read(top: EpochRecord | None) -> None:
            if top is not None and isinstance(top.record, Owner):
                self._send(top.record.replica, "on_command", client, top.record.attempt, command)

        self._read(session, on_read, lambda: None)

    def _fed_by(self, session: str, epoch: int) -> StandbyOwnership | None:
        role = self.roles.get(session)
        return role if role is not None and role.epoch == epoch and role.renewal() is not None else None

    # Actions

    def _do(self, session: str, actions: list[Action]) -> None:
        for action in actions:
            if self.is_dead:
                return
            match action:
                case Prepare():
                    self._prepare(session, action)
                case Move(attempt, move):
                    self._move(session, attempt, move)
                case Depart(attempt, _, _):
                    self._depart(session, attempt)
                case Settle(hold):
                    self._settle(session, hold)
                case CancelAttempt(attempt):
                    if (replica := self._sent_to.pop(attempt, None)) is not None:
                        self._send(replica, "on_cancel", attempt)
                case Commit():
                    self._commit(session, action)
                case LookInRegister():
                    self._read(session, lambda top: self._looked(session, top), lambda: None)
                case FollowRegister() | SessionLost():
                    self.world.counts[type(action).__name__] += 1
                    role, log = self.roles.pop(session), self.stores.pop(session, None)
                    if log is not None and isinstance(action, FollowRegister):
                        self.kept[session] = Kept(log, role.copy_epoch)

    def _prepare(self, session: str, action: Prepare) -> None:
        self.world.check(self.stores[session] is not None, f"{session}: {self.name} prepares without full state")
        replicas = self._replicas()
        self._prepare_on(
            [name for name in replicas if name != action.doubted] or replicas, session, action.attempt
        )

    def _prepare_on(self, replicas: list[str], session: str, attempt: str) -> None:
        if not replicas:
            self._do(session, self.roles[session].prepare_failed(attempt, self.clock))
            return
        replica, log = self.world.rnd.choice(replicas), self.stores[session] or EMPTY
        self._sent_to[attempt], self._prepared_with[attempt] = replica, log
        self._send(replica, "on_prepare", self.name, session, attempt, log)

    def _move(self, session: str, attempt: str, move: int) -> None:
        role = self.roles[session]
        assert role.owner is not None
        if not self._staying():
            self._do(session, role.prepare_failed(attempt, self.clock))
            return
        self.world.on_move(self)
        self._send(
            role.owner.replica, "on_yield", self.name, session, role.owner.attempt, role.epoch, move, attempt
        )

    def _depart(self, session: str, attempt: str) -> None:
        self.world.on_step(self, "offers")
        self._send(self.world.other.name, "on_offer", self.name, session, attempt)

    def on_offered(self, session: str, attempt: str) -> None:
        role = self.roles.get(session)
        if role is None or role.phase is not Phase.MOVING or attempt != role._attempt or role.owner is None:
            return
        self.world.on_step(self, "asked to depart")
        owner, move = role.owner, role._move
        self._send(owner.replica, "on_depart", self.name, session, owner.attempt, role.epoch, move, attempt)

    def _settle(self, session: str, hold: Hold) -> None:
        log = self._departed.pop(hold.transfer, None)
        if log is None:
            self._send(hold.destination.address, "on_settle", self.name, session, hold.transfer)
        else:
            self._send(hold.destination.address, "on_import", self.name, session, hold.transfer, log)
        self.world.on_step(self, "asked the other server")

        def wait_no_longer() -> None:
            role = self.roles.get(session)
            held = role.owner.held if role is not None and role.owner is not None else None
            if role is not None and held == hold and role._retry_at == math.inf:
                self._do(session, role.unsettled(self.clock))

        self.world.at(self.world.now + ASK_S, lambda: self.receive(wait_no_longer))

    def _commit(self, session: str, commit: Commit) -> None:
        self.world.on_commit(self, commit)
        if self.is_dead:
            return
        before = self.roles[session].owner
        if isinstance(commit.record, Owner) and commit.record.attempt == self.roles[session]._attempt:
            is_newest = self._prepared_with[commit.record.attempt] == self.stores[session]
            self.world.check(is_newest, f"{session}: {self.name} commits a copy that is not the newest")

        def on_created(won: bool) -> None:
            self.world.on_created(self, commit, won)
            if not self.is_dead and (role := self.roles.get(session)) is not None:
                if won and isinstance(commit.record, Ended) and before is not None:
                    self._send(before.replica, "on_drop", before.attempt, commit.epoch)
                self._do(session, role.committed(commit.epoch, won, self.clock))
                self._remember_deaths(session)

        def unreachable() -> None:
            if (role := self.roles.get(session)) is not None:
                self._do(session, role.commit_unreachable(self.clock))

        self._create(session, commit.epoch, commit.record, on_created, unreachable)

    def _looked(self, session: str, top: EpochRecord | None) -> None:
        if (role := self.roles.get(session)) is not None:
            self._do(session, role.looked(top, self.clock, self.world.processes))

    # Orphans

    def _look_for(self, orphan: Orphan, replica: str) -> None:
        role = self.roles.get(orphan.session_id)
        if role is not None and role.claims(orphan.attempt, replica):
            return
        if self.is_leaving and not orphan.without_lease_s:
            return
        if self.world.now < self._looked_at.get(orphan.attempt, -math.inf) + 1:
            return
        self._looked_at[orphan.attempt] = self.world.now

        def on_read(top: EpochRecord | None) -> None:
            self._looked(orphan.session_id, top)
            match decide_orphan(self.world.rules.config, top, orphan, replica, self.name):
                case Adopt() as adopt if self._may_adopt(orphan.session_id):
                    self.world.counts["adoptions"] += 1
                    self._begin(orphan.session_id, adopt, self.kept.pop(orphan.session_id, None))
                case Drop(attempt, epoch):
                    self._send(replica, "on_drop", attempt, epoch)

        self._read(orphan.session_id, on_read, lambda: None)

    def _may_adopt(self, session: str) -> bool:
        return session not in self.roles or self.roles[session].phase is Phase.WANTED

    def _look_after_kept(self, session: str, top: EpochRecord | None) -> None:
        if top is None or not isinstance(top.record, Owner) or session not in self.kept:
            return
        if not self._may_adopt(session):
            return
        owner, kept = top.record, self.kept[session]
        is_forsaken = owner.replica in self._known_dead and owner.standby not in self.world.processes
        if not (owner.is_gone or is_forsaken):
            kept.wanted_since = None
            return
        kept.wanted_since = since = self.clock if kept.wanted_since is None else kept.wanted_since
        copy = KeptCopy.of(owner, self.name, kept.epoch, self.world.processes)
        adopt = decide_kept(
            self.world.rules.config, top, self.name, copy, is_forsaken=is_forsaken, wanted_for_s=self.clock - since
        )
        if adopt is not None:
            self.world.counts["taken up again"] += 1
            self._begin(session, adopt, self.kept.pop(session))

    # Sessions without a standby

    def _look_for_forsaken(self, owners: dict[str, Owner]) -> None:
        """Adopt those of which it is so both times of two."""
        managers = self.world.processes.keys() - {self.name}
        found = {
            session: owner for session, owner in owners.items()
            if session not in self.roles and owner.standby not in managers
        }  # fmt: skip
        for session in [one for one, owner in found.items() if self._forsaken.get(one) == owner]:
            self._read(session, partial(self._adopt_forsaken, session, found[session]), lambda: None)
        self._forsaken = found

    def _adopt_forsaken(self, session: str, owner: Owner, top: EpochRecord | None) -> None:
        is_gone = owner.replica not in self.world.processes
        adopt = decide_forsaken(top, owner, self.name, is_gone=is_gone)
        if adopt is not None and session not in self.roles:
            self.world.counts["forsaken"] += 1
            self._begin(session, adopt)

    def _begin(self, session: str, adopt: Adopt | None, kept: Kept | None = None) -> None:
        copy = None
        if adopt is not None:
            self.stores[session] = None if kept is None else kept.log
            if kept is not None:
                copy = KeptCopy.of(adopt.owner, self.name, kept.epoch, self.world.processes)
        config, now = self.world.rules.config, self.clock
        self.roles[session] = self.world.rules.ownership(
            config, self.contacts, self.name, session, now, adopt, copy, self.world.new_attempt
        )

    def _remember_deaths(self, session: str) -> None:
        role = self.roles.get(session)
        if role is not None and role.owner is not None and role.owner.replica in self._known_dead:
            self._do(session, role.died(role.owner.replica, self.clock))

    # Ways out

    def _staying(self) -> list[str]:
        return [name for name in self._replicas() if name not in self.world.leaving]

    def _replicas(self) -> list[str]:
        return [replica.name for replica in self.world.replicas() if replica.name not in self._known_dead]

    def _send(self, to: str, method: str, *arguments: object) -> None:
        self.world.send(self.name, to, method, *arguments)

    def _read(
        self, session: str, then: Callable[[EpochRecord | None], None], otherwise: Callable[[], None]
    ) -> None:
        self.world.ask_register(self, lambda: self.world.latest(session), then, otherwise)

    def _create(
        self, session: str, epoch: int, record: Record, then: Callable[[bool], None], otherwise: Callable[[], None]
    ) -> None:
        self.world.ask_register(self, lambda: self.world.create(session, epoch, record), then, otherwise)
