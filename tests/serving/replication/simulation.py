"""A small cluster in simulated time: the real protocol on managers and replicas that stop, die and lose messages.

Everything follows from the seed. Sessions are logs: a copy with a lease appends frames to its log, and the
commands that it is given, and feeds its standby, whose copy is full while it has every entry. Each session has a
viewer and a client that come over the same network. Whatever happens:

- At most one copy has a lease.
- A viewer is sent each frame once and none out of turn, and in the end it has what the session has. Where the last
  frames before a takeover were lost on their way to the standby they are made again; a viewer that has seen them
  goes on behind them.
- A command is in what the session is at most once. One that was answered as replicated is in it for as long as
  one of the two copies lives that had it then; any other one for as long as the copy that applied it goes on.
- A session goes on, once its faults are over, from the newest copy there is. One of which none is left is ended.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from serving.protocol.stream_cursor import StreamCursor
from serving.replication.actions import Commit
from serving.replication.evacuation import settle
from serving.replication.leases import LeaseConfig, ReplicaLeases
from serving.replication.ownership import StandbyOwnership
from serving.replication.register import (
    Destination,
    Ended,
    EpochRecord,
    MemoryRegister,
    Owner,
    Record,
    Register,
)
from tests.serving.replication.simulated_clients import Client, Viewer
from tests.serving.replication.simulated_log import EMPTY, Frame, Log
from tests.serving.replication.simulated_processes import Copy, Manager, OtherServer, Process, Replica

STEP_S = 0.05
FAULTS_END_S = 40.0
SERVED_AGAIN_S = FAULTS_END_S + 15.0
HELD_UNTIL_S = FAULTS_END_S + 20.0
"""A session that finds no room on the other server tries that again, and stands still meanwhile."""

ON_ITS_WAY_S = 1.5
END_S = 67.0
SEEN_WITHIN_S = 5.0
"""Viewers and clients look for a session that is silent, and then what they ask for is on its way."""

FORSAKEN_UNTIL_S = 150.0
"""A session of which nothing is left is seen twice before it is adopted, and is wanted from others then."""

REGISTER_TIMEOUT_S = 2.0
KEEP_ENDED_S = 15.0
"""Less than in earnest, but longer than a call to the register is on its way."""

_T = TypeVar("_T")


class Hasty(LeaseConfig):
    """Sessions try to depart again within a run."""

    @property
    def depart_again_s(self) -> float:
        return 5 * self.lease_s


@dataclass(frozen=True)
class Rules:
    """The protocol; tests put broken pieces in its place."""

    config: LeaseConfig = field(default_factory=Hasty)
    register: Callable[[float, Callable[[], float]], Register] = MemoryRegister
    replica: type[Replica] = Replica
    manager: type[Manager] = Manager
    cursor: Callable[[int], StreamCursor] = StreamCursor
    leases: type[ReplicaLeases] = ReplicaLeases
    ownership: type[StandbyOwnership] = StandbyOwnership
    settle: Callable[[Register, str, str], Coroutine[Any, Any, bool]] = settle


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waited")


@dataclass
class Fate:
    """What the world knows of a session."""

    epochs: list[Record] = field(default_factory=list)
    ended_at: float | None = None
    is_stillborn: bool = False
    """Its owner's copy was gone already when its epoch was committed."""
    is_doomed: bool = False
    """Its replica and its standby copy were gone in the same moment."""
    served_at: float = SERVED_AGAIN_S
    leased_at: float = 0.0
    """When one of its copies had a lease last."""
    seen_at: float = SERVED_AGAIN_S
    """When its viewer had last seen all of it."""
    copied: dict[str, Log] = field(default_factory=dict)
    """What a replica knows that its standbys have, by manager."""
    replicated: dict[str, str] = field(default_factory=dict)
    """The commands of which a receipt says that a standby has them, and which; those that went with it are out."""
    opened_with: Log | None = None
    """What the last copy had that was opened elsewhere."""
    held_with: Log | None = None
    """What the copy had when it was held last, if it was there."""


class World:
    """The cluster, its network and its faults. `violations` are sentences about what never should be."""

    def __init__(self, seed: int, rules: Rules | None = None, sessions: int = 2, calm: bool = False) -> None:
        self.rnd = random.Random(seed)
        self.rules = rules if rules is not None else Rules()
        self.now = 0.0
        self.calm = calm
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.register = self.rules.register(KEEP_ENDED_S, lambda: self.now)
        self.fates = {f"s{number}": Fate() for number in range(sessions)}
        self.processes: dict[str, Process] = {}
        self.cuts: dict[tuple[str, str], float] = {}
        self.leaving: set[str] = set()
        """Replicas that are being taken away."""
        self.on_move: Callable[[Manager], None] = lambda manager: None
        self.on_yielded: Callable[[Manager], None] = lambda manager: None
        self.on_commit: Callable[[Manager, Commit], None] = self._maybe_die_committing
        self.on_created: Callable[[Manager, Commit, bool], None] = self._maybe_die_committed
        self.on_step: Callable[[Manager, str], None] = lambda manager, step: None
        """A manager is at a step of an evacuation."""
        self.destination: Destination | None = None
        self.other = OtherServer(self, "X0", self.rules.register(KEEP_ENDED_S, lambda: self.now))
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._attempts = itertools.count()
        self._names = {"M": itertools.count(), "R": itertools.count()}
        self._crash_rate = 0.0 if calm else self.rnd.choice([0, 0.0005, 0.002])
        for kind in "MMRRR":
            self.spawn(kind)
        self.processes[self.other.name] = self.other
        self.viewers = {session: Viewer(self, f"V{session}", session) for session in self.fates}
        self.clients = {session: Client(self, f"C{session}", session) for session in self.fates}
        for onlooker in (*self.viewers.values(), *self.clients.values()):
            self.processes[onlooker.name] = onlooker
        for session in self.fates:
            self._open(session)
        if not calm and self.rnd.random() < 0.5:
            self.at(self.rnd.uniform(10, FAULTS_END_S), self.evacuate)

    # Running

    def run(self, until: float = END_S) -> World:
        while self.now < until:
            self._step()
        if not self.calm:
            while self.now < FORSAKEN_UNTIL_S and any(map(self._is_forsaken, self.fates.values())):
                self._step()
            self._check_end()
        return self

    def _step(self) -> None:
        self.now += STEP_S
        if self.is_faulty:
            self._break_something()
        while self._queue and self._queue[0][0] <= self.now:
            heapq.heappop(self._queue)[2]()
        for process in list(self.processes.values()):
            if process.runs:
                process.step()
                if isinstance(process, Replica):
                    self._check_leases()
        run(self.register.forget_ended())
        for session, fate in self.fates.items():
            self._judge(session, fate)
        self._check_served()

    @property
    def is_faulty(self) -> bool:
        """Whether anything may go wrong at the moment."""
        return not self.calm and self.now < FAULTS_END_S

    def finish(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """As `run`."""
        return run(coroutine)

    def evacuate(self) -> None:
        """All sessions are to go to the other server."""
        self.destination = Destination(self.other.name, "other", "")

    def at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (time, next(self._numbers), action))

    def replicas(self) -> list[Replica]:
        return [process for process in self.processes.values() if isinstance(process, Replica)]

    def managers(self) -> list[Manager]:
        return [process for process in self.processes.values() if isinstance(process, Manager)]

    def manager(self, name: str) -> Manager:
        process = self.processes[name]
        assert isinstance(process, Manager)
        return process

    def replica(self, name: str) -> Replica:
        process = self.processes[name]
        assert isinstance(process, Replica)
        return process

    def copy(self, session: str = "s0") -> Copy:
        """That which has a lease."""
        [(_, copy)] = self._leased()[session]
        return copy

    def owner(self, session: str = "s0") -> Owner:
        record = self.fates[session].epochs[-1]
        assert isinstance(record, Owner)
        return record

    def new_attempt(self) -> str:
        return f"a{next(self._attempts)}"

    # Faults

    def spawn(self, kind: str) -> None:
        name = f"{kind}{next(self._names[kind])}"
        make = self.rules.manager if kind == "M" else self.rules.replica
        self.processes[name] = make(self, name)

    def crash(self, name: str, notice_s: float | None = None, replace_s: float | None = None) -> None:
        """Kill a process. Managers hear of it after `notice_s`, and another one begins after `replace_s`."""
        process = self.processes.pop(name)
        process.is_dead = True
        self.counts[f"crashes of {name[0]}"] += 1
        if isinstance(process, Replica) and notice_s is not None:
            self.at(self.now + notice_s, lambda: self._tell_of_death(name))
        if replace_s is not None:
            self.at(self.now + replace_s, lambda: self.spawn(name[0]))

    def _tell_of_death(self, name: str) -> None:
        for manager in self.managers():
            manager.receive(partial(manager.on_died, name))

    def pause(self, name: str, seconds: float) -> None:
        self.processes[name].paused_until = self.now + seconds

    def cut(self, source: str, target: str, seconds: float) -> None:
        """Lose what `source` sends to `target`; the register is K."""
        self.cuts[source, target] = self.now + seconds

    def leave(self, name: str, grace_s: float = math.inf) -> None:
        """Take a process away: another one begins, and it is killed after `grace_s`."""
        process = self.processes[name]
        self.counts[f"leaving {name[0]}"] += 1
        self.spawn(name[0])
        if isinstance(process, Manager):
            process.is_leaving = True
        else:
            self.leaving.add(name)
        self.at(self.now + grace_s, lambda: self._end(name))

    def _end(self, name: str) -> None:
        if name in self.processes:
            self.crash(name, self.rnd.choice([0.3, 1, 3]))

    def isolate(self, name: str, seconds: float) -> None:
        for other in [*self.processes, "K"]:
            self.cut(name, other, seconds)
            self.cut(other, name, seconds)

    def _break_something(self) -> None:
        rnd, left = self.rnd, FAULTS_END_S - self.now
        names = [name for name in self.processes if name[0] in self._names]
        ends = [name for name in self.processes if name != self.other.name]
        if rnd.random() < 0.01:
            self.pause(rnd.choice(names), min(left, rnd.choice([0.5, 1, 3, 6, 10])))
        if rnd.random() < 0.01:
            self.cut(rnd.choice(ends), rnd.choice([*ends, "K"]), min(left, rnd.choice([1, 3, 10])))
        if rnd.random() < 0.004:
            one, other = rnd.sample(ends, 2)
            seconds = min(left, rnd.choice([3, 10]))
            self.cut(one, other, seconds)
            self.cut(other, one, seconds)
        if rnd.random() < 0.004 and not self._is_leaving(name := rnd.choice(names)):
            self.leave(name, min(left, rnd.uniform(3, 20)))
        if rnd.random() < self._crash_rate:
            self._crash_and_replace(rnd.choice(names))

    def _is_leaving(self, name: str) -> bool:
        process = self.processes[name]
        return process.is_leaving if isinstance(process, Manager) else name in self.leaving

    def _crash_and_replace(self, name: str) -> None:
        self.crash(name, self.rnd.choice([0.3, 1, 3, 8]), self.rnd.uniform(1, 6))

    def _maybe_die_committing(self, manager: Manager, _: Commit) -> None:
        if not self.calm and self.now < FAULTS_END_S and self._crash_rate and self.rnd.random() < 0.05:
            self._crash_and_replace(manager.name)

    def _maybe_die_committed(self, manager: Manager, _: Commit, won: bool) -> None:
        if not manager.is_dead:
            self._maybe_die_committing(manager, _)

    def _open(self, session: str) -> None:
        """Have a session opened by one manager, and perhaps deleted by another."""
        self._ask_manager(0.0 if self.calm else self.rnd.uniform(0, 15), lambda manager: manager.open(session))
        if not self.calm and self.rnd.random() < 0.3:
            self._ask_manager(self.rnd.uniform(15, FAULTS_END_S), lambda manager: manager.delete(session))

    def _ask_manager(self, time: float, request: Callable[[Manager], None]) -> None:
        def ask() -> None:
            if managers := self.managers():
                request(managers[0] if self.calm else self.rnd.choice(managers))
            else:
                self._ask_manager(self.now + 1, request)

        self.at(time, ask)

    # Network and register

    def send(self, source: str, target: str, method: str, *arguments: object) -> None:
        for _ in range(1 if self.calm or self.rnd.random() > 0.05 else 2):
            faulty = not self.calm and self.now < FAULTS_END_S
            if (faulty and self.rnd.random() < 0.05) or self._is_cut(source, target):
                continue
            self.at(self.now + self._delay(), lambda: self._deliver(target, method, arguments))

    def ask_register(
        self, manager: Manager, ask: Callable[[], _T], then: Callable[[_T], None], otherwise: Callable[[], None]
    ) -> None:
        """Ask, and say once how that went; a question that is given up may still be heard later."""
        is_told: list[bool] = []

        def tell(answer: Callable[[], None]) -> None:
            if not is_told and not manager.is_dead:
                is_told.append(True)
                answer()

        def reach() -> None:
            result = ask()
            if not self._is_cut("K", manager.name):
                self.at(self.now + self._delay(), lambda: manager.receive(lambda: tell(lambda: then(result))))

        asked_at = self.now + self._delay()
        if (cut_until := self.cuts.get((manager.name, "K"), 0.0)) > self.now:
            asked_at = cut_until if self.rnd.random() < 0.5 else math.inf
        self.at(asked_at, reach)
        self.at(self.now + REGISTER_TIMEOUT_S, lambda: manager.receive(lambda: tell(otherwise)))

    def create(self, session: str, epoch: int, record: Record) -> bool:
        before = self.latest(session)
        won = run(self.register.create(session, epoch, record))
        if self.latest(session) != before:
            self._note(session, self.fates[session], record)
        return won

    def latest(self, session: str) -> EpochRecord | None:
        return run(self.register.latest(session))

    def open_sessions(self) -> dict[str, Owner]:
        return run(self.register.open_sessions())

    def _note(self, session: str, fate: Fate, record: Record) -> None:
        self.check(fate.ended_at is None, f"{session} got an epoch after its end")
        previous = fate.epochs[-1] if fate.epochs else None
        if isinstance(record, Ended):
            fate.ended_at = self.now
            self._judge(session, fate)
            begun = session in self.other.begun
            self.check(fate.is_doomed or record == Ended() or begun, f"{session} was given up with a copy alive")
        elif isinstance(previous, Owner) and previous.attempt != record.attempt:
            self.counts["takeovers"] += 1
            self._check_newest(session, fate, previous, record)
        if previous is None:
            fate.served_at = max(fate.served_at, self.now)
        fate.epochs.append(record)
        # Dropped while the register was out of its manager's reach for all of `look_after_s`.
        copy = self._copy_of(record) if isinstance(record, Owner) else None
        is_there = isinstance(record, Owner) and isinstance(self.processes.get(record.replica), Replica)
        fate.is_stillborn = is_there and copy is None
        self.counts["stillborn"] += fate.is_stillborn
        was_held = isinstance(previous, Owner) and previous.held is not None
        if isinstance(record, Owner) and record.held is not None and not was_held:
            fate.held_with = None if copy is None else copy.log

    def _check_newest(self, session: str, fate: Fate, previous: Owner, owner: Owner) -> None:
        """A session goes on from what it was known to have elsewhere, as long as that is there."""
        if (opened := self._copy_of(owner)) is None:
            return
        # What seemed to be the end was none: this commit was on its way.
        fate.is_doomed = False
        fate.opened_with = log = opened.log
        before, opener = self._copy_of(previous), self.processes.get(owner.standby)
        if before is not None and isinstance(opener, Manager) and opener.has_moved(owner.attempt):
            self.check(log == before.log, f"{session} has moved without what its copy has made")
        in_time = [manager for manager in self.managers() if not self._is_too_late(fate, manager)]
        for manager in in_time:
            has, copied = manager.log_of(session), fate.copied.get(manager.name, EMPTY)
            known = min(copied, has, key=len)
            self.check(log.begins_with(known), f"{session} goes on from {log}, {manager.name} has {known}")
        for command in fate.replicated.keys() - set(log.commands):
            standby = fate.replicated.pop(command)
            have = [m.name for m in in_time if m.name == standby or command in m.log_of(session).commands]
            self.check(not have, f"{session} goes on without {command}, which {have} have")
        self._check_commands(session, fate, log)

    def _is_too_late(self, fate: Fate, manager: Manager) -> bool:
        """Whether a session has waited in vain for a manager that was stopped, or cut off from the register."""
        since = self.now - self.rules.config.newer_copy_wait_s
        cut_until = max(self.cuts.get(pair, 0.0) for pair in ((manager.name, "K"), ("K", manager.name)))
        return fate.leased_at < since < max(manager.paused_until, cut_until)

    def _copy_of(self, owner: Owner) -> Copy | None:
        replica = self.processes.get(owner.replica)
        return replica.copies.get(owner.attempt) if isinstance(replica, Replica) else None

    def _check_commands(self, session: str, fate: Fate, log: Log) -> None:
        twice = [command for command, times in Counter(log.commands).items() if times > 1]
        self.check(not twice, f"{session} has commands twice: {twice}")
        undone = fate.replicated.keys() - set(log.commands)
        self.check(not undone, f"{session} has not got {undone}")

    def check_sends(self, session: str, replica: Replica, attempt: str) -> None:
        """A copy sends something to a viewer."""
        has_lease = replica.leases.has_lease(attempt, replica.clock)
        self.check(has_lease, f"{session} has a copy that sends without a lease")

    def note_receipt(self, session: str, command: str, standby: str | None) -> None:
        """A copy answers a command, which a standby has or not."""
        self.counts[f"receipts, replicated {standby is not None}"] += 1
        if standby is not None:
            self.fates[session].replicated[command] = standby

    def check_seen(self, session: str, seen: Sequence[Frame], frame: Frame) -> None:
        """A viewer is sent a frame."""
        in_turn = frame.number == len(seen)
        self.check(in_turn, f"{session} shows frame {frame.number} behind {len(seen)} others")

    def _epoch(self, session: str, frame: Frame) -> int:
        """The first one of the copy that has made it."""
        epochs = self.fates[session].epochs
        return next(
            number
            for number, record in enumerate(epochs)
            if isinstance(record, Owner) and record.attempt == frame.made_by
        )

    def _is_cut(self, source: str, target: str) -> bool:
        return self.cuts.get((source, target), 0.0) > self.now

    def _delay(self) -> float:
        if self.calm or self.now >= FAULTS_END_S or self.rnd.random() < 0.9:
            return self.rnd.expovariate(20) if not self.calm else 0.02
        return self.rnd.uniform(0, 8)

    def _deliver(self, target: str, method: str, arguments: tuple[object, ...]) -> None:
        if (process := self.processes.get(target)) is not None:
            process.receive(lambda: getattr(process, method)(*arguments))

    # Judgement

    def check(self, holds: bool, problem: str) -> None:
        if not holds and len(self.violations) < 20:
            self.violations.append(f"{self.now:.2f}: {problem}")

    def leased(self, session: str = "s0") -> list[str]:
        """Replicas whose copies of the session may make and send something now."""
        return [name for name, _ in self._leased()[session]]

    def _leased(self) -> dict[str, list[tuple[str, Copy]]]:
        found: defaultdict[str, list[tuple[str, Copy]]] = defaultdict(list)
        for process in self.processes.values():
            if isinstance(process, Replica) and process.runs:
                for copy in process.leased():
                    found[copy.session].append((process.name, copy))
        return found

    def _check_leases(self) -> None:
        for session, copies in self._leased().items():
            self.fates[session].leased_at = self.now
            self.check(session not in self.other.begun, f"{session} goes on here and on the other server")
            self.check(len(copies) <= 1, f"{session} has two leased copies")
            ended_at = self.fates[session].ended_at
            returned = ended_at is not None and any(copy.made_at > ended_at for _, copy in copies)
            self.check(not returned, f"{session} came back after its end")

    def _judge(self, session: str, fate: Fate) -> None:
        """Whether the session's last chance is gone: its owner's process is dead, and nobody can go on with it."""
        top = fate.epochs[-1] if fate.epochs else None
        if isinstance(top, Owner) and (fate.is_stillborn or top.replica not in self.processes):
            owned = self.processes.get(top.standby)
            has_state = isinstance(owned, Manager) and owned.has_state(session, len(fate.epochs))
            fate.is_doomed |= not has_state and not any(manager.keeps(session) for manager in self.managers())

    def _check_served(self) -> None:
        if self.now > SERVED_AGAIN_S and not self.calm:
            leased = self._leased()
            for session, fate in self.fates.items():
                is_served = leased[session] or session in self.other.begun or not self._ought_to_be_served(fate)
                if is_served or (self.now <= HELD_UNTIL_S and _is_held(fate)):
                    fate.served_at = self.now
                self.check(self.now - fate.served_at <= ON_ITS_WAY_S, f"{session} is not served")
                if all(len(self.viewers[session].frames) >= len(copy.log.frames) for _, copy in leased[session]):
                    fate.seen_at = self.now

    def _ought_to_be_served(self, fate: Fate) -> bool:
        return bool(fate.epochs) and fate.ended_at is None and not fate.is_doomed

    def _check_end(self) -> None:
        for session, fate in self.fates.items():
            begun, left = self.other.begun.get(session), fate.held_with
            self.check(begun is None or left in (None, begun), f"{session} began there with {begun} of {left}")
            self.counts["moved"] += begun is not None
            if begun is not None:
                self._check_commands(session, fate, begun)
            copies = [copy for replica in self.replicas() for copy in replica.copies.values()]
            # A younger one may be what its manager prepares in this moment.
            here = sum(copy.session == session and copy.made_at < self.now - 5 for copy in copies)
            self.check(here <= (fate.ended_at is None), f"{session} has {here} copies at the end")
            self.check(not self._is_forsaken(fate), f"{session} is gone, and was not ended")
            self.counts["doomed"] += fate.is_doomed
            self.counts["ended"] += fate.ended_at is not None
            self.counts["served"] += self._ought_to_be_served(fate)
            for _, copy in self._leased()[session]:
                self._check_users(session, fate, copy.log)

    def _check_users(self, session: str, fate: Fate, log: Log) -> None:
        """Its viewer and its client have what they want of a session that goes on."""
        self._check_commands(session, fate, log)
        self.check(self.now - fate.seen_at <= SEEN_WITHIN_S, f"{session} has frames that its viewer was not sent")
        waits_s = self.now - self.clients[session].waits_since
        self.check(waits_s <= SEEN_WITHIN_S, f"the client of {session} has waited for {waits_s:.1f} s")
        for seen, frame in zip(self.viewers[session].frames, log.frames, strict=False):
            was_replaced = self._epoch(session, seen) < self._epoch(session, frame)
            self.check(seen == frame or was_replaced, f"{session} shows {seen} in place of {frame}")

    def _is_forsaken(self, fate: Fate) -> bool:
        return fate.is_doomed and fate.ended_at is None


def _is_held(fate: Fate) -> bool:
    top = fate.epochs[-1]
    return isinstance(top, Owner) and top.held is not None
