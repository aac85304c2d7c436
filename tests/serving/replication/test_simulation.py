"""The ownership protocol under faults: at random, in the cases that have a name, and with each rule left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.stream_cursor import StreamCursor, Verdict
from serving.replication.actions import Action, Commit
from serving.replication.leases import CopyLease, CopyReport, RenewRequest, ReplicaLeases
from serving.replication.ownership import Phase, StandbyOwnership
from serving.replication.register import Ended, MemoryRegister, Owner, Record, Register
from tests.serving.replication.simulated_log import Log
from tests.serving.replication.simulated_processes import Manager, Replica
from tests.serving.replication.simulation import STEP_S, Hasty, Rules, World, run

VARIANT_SEEDS = range(1455, 1905)
"""Among the first of which each variant is found out."""


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_whatever_happens_one_copy_has_a_lease_and_sessions_are_served_again(seed: int) -> None:
    assert World(seed).run().violations == []


# Cases with a name. M0 has opened the session, and has been fed for three seconds.


@pytest.fixture(params=range(3))
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, sessions=1, calm=True).run(until=3.0)


def copies(world: World) -> list[str]:
    return [replica.name for replica in world.replicas() for _ in replica.copies]


def is_adopted(world: World, before: Owner) -> bool:
    """Whether M1 is the standby of the copy that M0 was the standby of."""
    return replace(world.owner(), standbys=()) == replace(before, standby="M1")


def crash_committing(world: World) -> Callable[[Manager, Commit], None]:
    return lambda manager, _: world.crash(manager.name)


def test_a_manager_that_dies_before_it_opened_a_session_leaves_nothing() -> None:
    world = World(0, sessions=1, calm=True)
    world.on_commit = crash_committing(world)
    world.run(until=15.0)
    assert (world.latest("s0"), copies(world), world.violations) == (None, [], [])


def test_a_manager_dies_before_it_commits_a_takeover(world: World) -> None:
    before = world.owner()
    world.on_commit = crash_committing(world)
    world.isolate(before.replica, 2.5)
    world.at(5.5, lambda: setattr(world, "on_commit", lambda *_: None))
    world.run(until=20.0)
    assert is_adopted(world, before)
    assert (world.leased(), copies(world)) == ([before.replica], [before.replica])
    assert world.violations == []


def test_a_manager_dies_after_it_committed_a_takeover_and_before_it_granted_a_lease(world: World) -> None:
    world.on_created = lambda manager, *_: world.crash(manager.name)
    world.crash(world.owner().replica)
    world.at(6.0, lambda: setattr(world, "on_created", lambda *_: None))
    world.run(until=6.0)
    committed = world.owner()
    assert (committed.standby, world.leased()) == ("M0", [])
    world.run(until=18.0)
    assert is_adopted(world, committed)
    assert (world.leased(), world.violations) == ([committed.replica], [])


@pytest.mark.parametrize("replica_dies", [True, False], ids=["with its replica", "alone"])
def test_both_copies_are_gone_and_nobody_makes_up_a_session(world: World, replica_dies: bool) -> None:
    owner = world.owner()
    if replica_dies:
        world.crash(owner.replica)
    else:
        world.replica(owner.replica).on_drop(owner.attempt, 1)
    world.crash("M0", replace_s=1.0)
    world.run(until=100.0)
    *_, wanted, ended = world.fates["s0"].epochs
    assert wanted == replace(owner, standby="M1", is_gone=True)
    assert isinstance(ended, Ended)
    assert (ended.lost, copies(world), world.violations) == (True, [], [])


def test_a_copy_that_was_kept_goes_on_where_owner_and_standby_were_lost_with_their_node(world: World) -> None:
    def die(manager: Manager, commit: Commit, won: bool) -> None:
        if manager.name == "M1" and won:
            world.crash(world.owner().replica)
            world.crash("M1")

    world.on_created = die
    world.pause("M0", 6.0)
    world.run(until=12.0)
    kept = world.manager("M0").log_of("s0")
    world.run(until=80.0)
    assert world.fates["s0"].opened_with == kept
    assert world.leased() == copies(world) == [world.owner().replica]
    assert world.violations == []


@pytest.mark.parametrize("seconds", [1.0, 3.0, 10.0])
def test_a_replica_wakes_and_there_is_one_copy(world: World, seconds: float) -> None:
    before = world.owner()
    world.pause(before.replica, seconds)
    world.run(until=20.0)
    moved = seconds > world.rules.config.lease_s
    assert (world.owner().attempt != before.attempt) == moved
    assert world.leased() == copies(world) == [world.owner().replica]
    assert world.violations == []


def test_a_takeover_comes_before_an_adoption(world: World) -> None:
    before = world.owner()
    for one, other in ((before.replica, "M0"), ("M0", before.replica)):
        world.cut(one, other, 15.0)
    world.run(until=15.0)
    assert world.owner().standby == "M0"
    assert world.leased() == copies(world) == [world.owner().replica] != [before.replica]
    assert world.violations == []


@pytest.mark.parametrize("newer_dies", [False, True])
def test_a_session_adopted_again_goes_on_from_the_copy_of_the_manager_in_between_if_that_is_there(
    world: World, newer_dies: bool
) -> None:
    """M0, M1 and M0 again are its standby, and the owner dies before M0 is fed."""
    world.pause("M0", 6.0)
    world.run(until=14.0)
    assert world.owner().standby == "M1"
    world.pause("M1", 8.0)

    def die(manager: Manager, commit: Commit, won: bool) -> None:
        if manager.name == "M0" and won and not had:
            had.update({name: world.manager(name).log_of("s0") for name in ("M0", "M1")})
            world.crash(world.owner().replica, notice_s=0.1)
            if newer_dies:
                world.crash("M1")

    had: dict[str, Log] = {}
    world.on_created = die
    world.run(until=34.0)
    assert len(had["M0"]) < len(had["M1"])
    opened_with = world.fates["s0"].opened_with
    assert opened_with is not None
    assert opened_with == had["M0"] if newer_dies else opened_with.begins_with(had["M1"])
    assert world.leased() == copies(world) == [world.owner().replica]
    assert world.violations == []


def test_a_manager_that_was_fed_just_now_has_the_newest_copy(world: World) -> None:
    """M1 is stopped before it says that it was fed; M0 adopts again, and the owner dies."""
    owner, m1 = world.owner(), world.manager("M1")
    world.pause("M0", 6.0)
    world.cut(owner.replica, "M0", 6.0)
    while "s0" not in m1.roles or not m1.roles["s0"]._is_full:
        world.run(until=world.now + STEP_S)
    world.pause("M1", 6.0)

    def die(manager: Manager, commit: Commit, won: bool) -> None:
        if manager.name == "M0" and won and not had:
            had.append(m1.log_of("s0"))
            world.crash(owner.replica, notice_s=0.1)

    had: list[Log] = []
    world.on_created = die
    world.run(until=40.0)
    opened_with = world.fates["s0"].opened_with
    assert opened_with is not None
    assert opened_with.begins_with(had[0])
    assert world.violations == []


def test_an_adoption_comes_before_a_takeover(world: World) -> None:
    before = world.owner()
    for one, other in ((before.replica, "M0"), ("M0", before.replica), ("M0", "K")):
        world.cut(one, other, 6.0)
    world.run(until=15.0)
    assert is_adopted(world, before)
    assert "s0" not in world.manager("M0").roles
    assert world.leased() == copies(world) == [before.replica]
    assert world.violations == []


def test_a_manager_that_wakes_finds_its_session_adopted(world: World) -> None:
    before = world.owner()
    world.pause("M0", 8.0)
    world.run(until=20.0)
    assert is_adopted(world, before)
    assert "s0" not in world.manager("M0").roles
    assert world.violations == []


@pytest.mark.parametrize("moment", ["before the takeover", "while it is committed"])
def test_a_session_that_is_deleted_during_failover_does_not_return(world: World, moment: str) -> None:
    if moment == "before the takeover":
        world.at(3.0, lambda: world.manager("M1").delete("s0"))
    else:
        world.on_commit = lambda *_: world.manager("M1").delete("s0")
    world.crash(world.owner().replica, notice_s=0.5)
    world.run(until=25.0)
    assert world.fates["s0"].epochs[-1] == Ended()
    assert (world.leased(), copies(world), world.violations) == ([], [], [])


def test_a_commit_that_the_register_heard_and_did_not_answer_is_won(world: World) -> None:
    world.cut("K", "M0", 4.0)
    world.crash(world.owner().replica)
    world.run(until=10.0)
    assert len(world.fates["s0"].epochs) == 2
    assert (world.leased(), world.violations) == ([world.owner().replica], [])


@pytest.mark.parametrize("notice_s", [None, 0.5], ids=["with its node", "alone"])
def test_a_session_waits_for_a_replica_that_takes_long_to_start(world: World, notice_s: float | None) -> None:
    for replica in world.replicas():
        world.crash(replica.name, notice_s)
    world.at(45.0, lambda: world.spawn("R"))
    world.run(until=50.0)
    assert world.leased() == copies(world) == [world.owner().replica]
    assert world.violations == []


def test_a_session_whose_node_was_lost_with_what_its_standby_lacked_is_said_to_be_lost(world: World) -> None:
    manager, config = world.manager("M0"), world.rules.config
    until = world.now + config.behind_wait_s + config.standby_expires_s + 3
    role, manager.stores["s0"] = manager.roles["s0"], None
    role._is_full, role.copy_epoch = False, 0
    world.crash(world.owner().replica)
    world.run(until)
    assert isinstance(world.fates["s0"].epochs[-1], Ended)
    assert (manager.roles, world.violations) == ({}, [])


# What its viewer and its client see of it.


def test_a_viewer_is_shown_what_the_session_goes_on_from(world: World) -> None:
    before = world.owner()
    world.crash(before.replica, notice_s=0.5)
    world.run(until=12.0)
    seen = world.viewers["s0"].frames
    assert {frame.made_by for frame in seen} == {before.attempt, world.owner().attempt}
    assert tuple(seen) == world.copy().log.frames[: len(seen)]
    assert world.violations == []


def test_a_frame_that_the_standby_has_not_got_is_made_again_and_shown_once(world: World) -> None:
    before = world.owner()
    world.cut(before.replica, "M0", 10.0)
    world.run(until=12.0)
    shown = zip(world.viewers["s0"].frames, world.copy().log.frames, strict=False)
    made = {(seen.made_by, frame.made_by) for seen, frame in shown}
    first, second = before.attempt, world.owner().attempt
    assert made == {(first, first), (first, second), (second, second)}
    assert world.violations == []


def test_a_command_that_was_replicated_outlives_its_replica(world: World) -> None:
    before = world.owner()
    world.replica(before.replica).on_command("Cs0", before.attempt, "by hand")
    world.at(3.3, lambda: world.crash(before.replica, notice_s=0.5))
    world.run(until=12.0)
    assert "by hand" in world.fates["s0"].replicated
    assert world.copy().log.commands.count("by hand") == 1
    assert world.violations == []


def test_a_command_that_the_standby_has_not_got_may_go_with_its_replica_and_its_receipt_says_so(
    world: World,
) -> None:
    before = world.owner()
    world.cut(before.replica, "M0", 10.0)
    world.replica(before.replica).on_command("Cs0", before.attempt, "by hand")
    world.run(until=4.0)
    assert "by hand" in world.copy().log.commands
    assert "by hand" not in [waiting.id for waiting in world.copy().unanswered]
    world.run(until=12.0)
    assert "by hand" not in world.fates["s0"].replicated
    assert "by hand" not in world.copy().log.commands
    assert world.violations == []


def test_a_command_that_comes_again_elsewhere_is_not_applied_again(world: World) -> None:
    before = world.owner()
    world.replica(before.replica).on_command("Cs0", before.attempt, "by hand")
    world.at(3.5, lambda: world.leave(before.replica))
    world.run(until=8.0)
    now = world.owner()
    world.replica(now.replica).on_command("Cs0", now.attempt, "by hand")
    assert now.replica != before.replica
    assert world.copy().log.commands.count("by hand") == 1
    assert world.violations == []


# A process is taken away. What it holds goes on elsewhere while it is still there.


def longest_pause(world: World, until: float) -> float:
    """The longest time until then in which the session had no leased copy, in seconds."""
    longest, served_at = 0.0, world.now
    while world.now < until:
        world.run(until=world.now + STEP_S)
        served_at = world.now if world.leased() else served_at
        longest = max(longest, world.now - served_at)
    return longest


def test_a_replica_that_is_taken_away_hands_its_session_over(world: World) -> None:
    before = world.owner()
    world.leave(before.replica)
    paused_s = longest_pause(world, until=8.0)
    assert before.replica not in (world.owner().replica, *copies(world))
    assert paused_s < world.rules.config.lease_s / 2
    assert (world.counts["takeovers"], world.violations) == (1, [])


def test_a_session_stays_on_a_replica_that_is_taken_away_until_there_is_another_one(world: World) -> None:
    before = world.owner()
    world.leaving |= {replica.name for replica in world.replicas()}
    assert longest_pause(world, until=8.0) == 0
    assert world.owner() == before
    world.spawn("R")
    world.run(until=12.0)
    assert world.owner().replica not in world.leaving
    assert world.violations == []


@pytest.mark.parametrize("step", ["on_move", "on_yielded", "on_commit", "on_created"])
def test_a_manager_dies_in_the_middle_of_a_move_and_another_one_goes_on(world: World, step: str) -> None:
    setattr(world, step, lambda manager, *_: world.crash(manager.name))
    world.at(3.5, lambda: world.leave(world.owner().replica))
    world.run(until=5.0)
    assert "M0" not in world.processes
    setattr(world, step, lambda *_: None)
    world.run(until=20.0)
    assert world.owner().standby == "M1"
    assert world.owner().replica not in world.leaving
    assert world.leased() == copies(world) == [world.owner().replica]
    assert world.violations == []


def test_a_manager_that_is_taken_away_renews_until_another_one_does(world: World) -> None:
    before = world.owner()
    world.leave("M0")
    assert longest_pause(world, until=8.0) == 0
    assert (world.owner().attempt, world.owner().standby in world.processes) == (before.attempt, True)
    assert world.owner().standby != "M0"
    assert "s0" not in world.manager("M0").roles
    assert world.violations == []


def test_managers_that_are_all_taken_away_do_not_adopt_from_each_other(world: World) -> None:
    for manager in world.managers():
        manager.is_leaving = True
    world.run(until=10.0)
    assert (world.owner().standby, world.counts["adoptions"]) == ("M0", 0)


# All sessions go to another server, which has a register of its own.

COMMITS = ("commits", "has committed")
STEPS = ("offers", "asked to depart", "departed", "asked the other server", "settled")


def goes_on_once(world: World) -> bool:
    """Whether the session is on the other server with all that was made of it, and on no replica here."""
    is_whole = world.other.begun == {"s0": world.fates["s0"].held_with}
    return is_whole and (world.leased(), copies(world), world.violations) == ([], [], [])


def at_step(world: World, step: str, do: Callable[[Manager], None], times: Sequence[int] = (1,)) -> None:
    """Do something when a manager is at a step for the first time, or for the `times`-th."""
    steps: list[str] = []

    def at(manager: Manager, reached: str) -> None:
        steps.append(reached)
        if reached == step and steps.count(step) in times:
            do(manager)

    world.on_step = at
    world.on_commit = lambda manager, _: at(manager, "commits")
    world.on_created = lambda manager, *_: at(manager, "has committed")


def test_a_session_goes_to_another_server(world: World) -> None:
    world.evacuate()
    world.run(until=6.0)
    assert goes_on_once(world)
    ended = world.fates["s0"].epochs[-1]
    assert isinstance(ended, Ended)
    assert ended.moved_to == world.destination


@pytest.mark.parametrize(("step", "nth"), [*((step, 1) for step in STEPS), *product(COMMITS, (1, 2))])
def test_a_manager_dies_at_each_step_of_an_evacuation(world: World, step: str, nth: int) -> None:
    assert crashes_in_an_evacuation(world, step, (nth,)) == 1


@pytest.mark.parametrize("step", [*STEPS, *COMMITS])
def test_the_manager_that_goes_on_with_an_evacuation_dies_at_the_same_step(world: World, step: str) -> None:
    assert crashes_in_an_evacuation(world, step, (1, 2)) == 2


def crashes_in_an_evacuation(world: World, step: str, times: Sequence[int]) -> int:
    """How many managers died, each time that one is at a step, while a session went elsewhere, whole."""
    crashed = list[str]()

    def crash(manager: Manager) -> None:
        crashed.append(manager.name)
        world.crash(manager.name, replace_s=1.0)

    at_step(world, step, crash, times)
    world.evacuate()
    world.run(until=60.0)
    assert goes_on_once(world)
    return len(crashed)


@pytest.mark.parametrize("cut", [("M0", "X0"), ("X0", "M0")], ids=["not asked", "not answered"])
def test_a_session_is_held_for_as_long_as_the_other_server_is_out_of_reach(
    world: World, cut: tuple[str, str]
) -> None:
    at_step(world, "departed", lambda _: world.cut(*cut, 12.0))
    world.evacuate()
    world.run(until=14.0)
    owner = world.fates["s0"].epochs[1]
    assert isinstance(owner, Owner)
    assert (owner.held is not None, world.leased()) == (True, [])
    world.run(until=60.0)
    assert goes_on_once(world)


def test_a_replica_dies_while_its_session_is_held_and_the_session_goes_on(world: World) -> None:
    at_step(world, "departed", lambda _: world.cut("M0", "X0", 8.0))
    world.evacuate()
    world.at(6.0, lambda: world.crash(world.owner().replica, notice_s=0.5))
    world.run(until=60.0)
    assert goes_on_once(world)


def test_a_session_whose_id_the_other_server_knows_stays_until_that_forgets_it(world: World) -> None:
    other = world.other.register
    run(other.create("s0", 1, Owner("elsewhere", "another", "X0")))
    world.evacuate()
    assert longest_pause(world, until=10.0) == 0
    run(other.create("s0", 2, Ended()))
    world.run(until=40.0)
    assert goes_on_once(world)


# Without a rule, the same simulation finds what the rule is for.


class CountsFromReceipt(ReplicaLeases):
    def _lease_end(self, reading: float, now: float) -> float:
        return now + self._config.lease_s


class DoesNotWait(Hasty):
    @property
    def takeover_wait_s(self) -> float:
        return self.doubt_after_s


class NoRegister(MemoryRegister):
    """Everybody wins."""

    async def create(self, session_id: str, epoch: int, record: Record) -> bool:
        self._records[session_id] = [*self._records.get(session_id, [])[: epoch - 1], record]
        return True


class ForgetsEnds(MemoryRegister):
    """Creates an epoch whose predecessor was forgotten."""

    async def create(self, session_id: str, epoch: int, record: Record) -> bool:
        if session_id not in self._records:
            self._records[session_id] = [record]
            return True
        return await super().create(session_id, epoch, record)


class RenewsWhileItCommits(StandbyOwnership):
    def renewal(self) -> CopyLease | None:
        if self.owner is None or self.phase is Phase.RELEASED:
            return None
        return CopyLease(self.session_id, self.owner.attempt, self.epoch)


class TakesLowerEpochs(ReplicaLeases):
    def _renew_copy(self, lease: CopyLease, request: RenewRequest, now: float) -> CopyReport:
        if (copy := self._copies.get(lease.attempt)) is not None:
            copy.epoch = None
        return super()._renew_copy(lease, request, now)


class IsAlwaysFull(StandbyOwnership):
    def _is_usable(self, now: float) -> bool:
        return True


class RenewsWhatHasYielded(ReplicaLeases):
    def yield_lease(self, attempt: str, epoch: int, move: int, now: float) -> bool:
        yielded = super().yield_lease(attempt, epoch, move, now)
        if (copy := self._copies.get(attempt)) is not None:
            copy.has_yielded = False
        return yielded


class KeepsWhatItPrepared(StandbyOwnership):
    def fed(self, epoch: int, full: bool, now: float, *, is_news: bool = True) -> list[Action]:
        phase, self.phase = self.phase, Phase.SERVING if self._is_open else self.phase
        super().fed(epoch, full, now, is_news=is_news)
        self.phase = phase
        return []


class EndsWhatAnotherHasKept(StandbyOwnership):
    def _lose(self) -> list[Action]:
        return self._commit(Ended("it has no copy", lost=True))


class RenewsWhatIsHeld(ReplicaLeases):
    def _renew_copy(self, lease: CopyLease, request: RenewRequest, now: float) -> CopyReport:
        return super()._renew_copy(lease._replace(held=False), request, now)


class SendsWithoutALease(Replica):
    def _may_send(self, attempt: str) -> bool:
        return True


class ForgetsReceipts(Replica):
    def _receipts(self, log: Log) -> set[str]:
        return set()


class AnswersAtOnce(Replica):
    """Takes what is on its way to the standby for what that has."""

    def on_command(self, client: str, attempt: str, command: str) -> None:
        super().on_command(client, attempt, command)
        if (copy := self.copies.get(attempt)) is not None:
            self.on_acknowledged(self.leases.standby(attempt) or "", attempt, len(copy.log))


class LooksForNobody(Manager):
    def _look_for_forsaken(self, owners: dict[str, Owner]) -> None:
        """Leaves sessions without a standby alone."""


class SeesNoHole(StreamCursor):
    def judge(self, event: pb.Event) -> Verdict:
        verdict = super().judge(event)
        return Verdict.NEWS if verdict is Verdict.HOLE else verdict


class GoesOnWithoutAsking(StandbyOwnership):
    """Takes no answer for a no."""

    def unsettled(self, now: float) -> list[Action]:
        return self.settled(False, now)


async def looks_only(register: Register, session_id: str, transfer: str) -> bool:
    """Does not have the other server never begin."""
    first = await register.first(session_id)
    return isinstance(first, Owner) and first.attempt == transfer


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        (Rules(leases=RenewsWhatIsHeld), "here and on the other server"),
        (Rules(ownership=GoesOnWithoutAsking), "here and on the other server"),
        (Rules(settle=looks_only), "here and on the other server"),
        (Rules(leases=CountsFromReceipt), "two leased copies"),
        (Rules(config=DoesNotWait()), "two leased copies"),
        (Rules(register=NoRegister), "two leased copies"),
        (Rules(ownership=RenewsWhileItCommits), "two leased copies"),
        (Rules(leases=TakesLowerEpochs), "two leased copies"),
        (Rules(leases=RenewsWhatHasYielded), "two leased copies"),
        (Rules(ownership=EndsWhatAnotherHasKept), "given up with a copy alive"),
        (Rules(register=ForgetsEnds), "after its end"),
        (Rules(ownership=IsAlwaysFull), "without full state"),
        (Rules(ownership=KeepsWhatItPrepared), "not the newest"),
        (Rules(replica=SendsWithoutALease), "sends without a lease"),
        (Rules(cursor=SeesNoHole), "shows frame"),
        (Rules(replica=ForgetsReceipts), "commands twice"),
        (Rules(replica=AnswersAtOnce), "goes on without"),
        (Rules(manager=LooksForNobody), "was not ended"),
    ],
    ids=[
        "held",
        "asks",
        "never begins",
        "reading",
        "wait",
        "register",
        "no renewal",
        "fencing",
        "yield",
        "keeps",
        "end",
        "full state",
        "newest state",
        "no lease, no frame",
        "no hole",
        "receipts",
        "acknowledged",
        "standby",
    ],
)
def test_a_rule_that_is_left_out_is_missed(rules: Rules, found: str) -> None:
    assert any(found in problem for seed in VARIANT_SEEDS for problem in World(seed, rules).run().violations)
