"""The manager's side: when a session may be taken over, and what becomes of every way it can go wrong."""

from __future__ import annotations

import itertools

import pytest

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
from serving.replication.adoption import Adopt, Drop, decide_orphan
from serving.replication.contacts import Contacts
from serving.replication.kept_copies import KeptCopy, decide_kept
from serving.replication.leases import CopyLease, CopyReport, LeaseConfig, Orphan
from serving.replication.ownership import Phase, StandbyOwnership
from serving.replication.register import Destination, Ended, EpochRecord, Hold, Owner, StandbyEpoch

CONFIG = LeaseConfig()


class Standby:
    """An ownership whose attempts are a1, a2 and so on, and whose replicas answer when told."""

    def __init__(self, adopt: Adopt | None = None, *, kept: KeptCopy | None = None) -> None:
        self.contacts = Contacts()
        numbers = itertools.count(1)
        self.role = StandbyOwnership(
            CONFIG, self.contacts, "m", "s", 0.0, adopt, kept, lambda: f"a{next(numbers)}"
        )

    def prepared(self, attempt: str, replica: str, now: float) -> object:
        self.contacts.heard(replica, now, now)
        return self.role.prepared(attempt, replica, now)

    def answers(self, now: float, epoch: int | None = 1, attempt: str = "a1", replica: str = "r1") -> object:
        self.contacts.heard(replica, now, now)
        return self.role.reported(CopyReport("s", attempt, epoch), now)


def serving() -> Standby:
    """Epoch 1 on r1, fed and heard of at 0."""
    standby = Standby()
    assert standby.role.tick(0.0) == [Prepare("a1", None)]
    assert standby.prepared("a1", "r1", 0.0) == [Commit(1, Owner("r1", "a1", "m"))]
    assert standby.role.committed(1, True, 0.0) == []
    standby.role.fed(1, True, 0.0)
    return standby


def committing() -> Standby:
    """Silence has led to an attempt on r2, which is being committed."""
    standby = serving()
    standby.role.tick(0.9)
    standby.prepared("a2", "r2", 1.0)
    assert standby.role.tick(2.2) == [Commit(2, Owner("r2", "a2", "m"))]
    return standby


def test_nothing_is_renewed_before_the_first_epoch_is_committed() -> None:
    standby = Standby()
    standby.role.tick(0.0)
    assert standby.role.renewal() is None


def test_the_answer_to_prepare_lets_the_first_renewal_grant_a_lease() -> None:
    standby = serving()
    lease = standby.role.renewal()
    assert lease == CopyLease("s", "a1", 1, is_copied=True)
    assert standby.contacts.request("m", "r1", [lease]).reading == 0.0


def test_nobody_is_doubted_while_the_replica_answers() -> None:
    standby = serving()
    assert [standby.answers(half / 2) for half in range(1, 9)] == [[]] * 8


def test_another_copy_is_prepared_at_the_first_doubt() -> None:
    standby = serving()
    assert standby.role.tick(0.79) == []
    assert standby.role.tick(0.8) == [Prepare("a2", "r1")]


def test_the_attempt_is_cancelled_if_the_replica_answers_again() -> None:
    standby = serving()
    standby.role.tick(0.9)
    standby.prepared("a2", "r2", 1.0)
    assert standby.answers(1.5) == [CancelAttempt("a2")]
    assert standby.role.phase is Phase.SERVING


def test_silence_takes_over_after_one_lease_and_a_tenth() -> None:
    standby = serving()
    standby.role.tick(0.9)
    standby.prepared("a2", "r2", 1.0)
    assert standby.role.tick(2.19) == []
    assert standby.role.tick(2.2) == [Commit(2, Owner("r2", "a2", "m"))]


def test_an_answer_about_other_sessions_postpones_the_takeover() -> None:
    standby = serving()
    standby.contacts.heard("r1", 0.7, 0.7)
    standby.role.tick(1.6)
    standby.prepared("a2", "r2", 1.7)
    assert standby.role.tick(2.5) == []
    assert standby.role.tick(2.9) == [Commit(2, Owner("r2", "a2", "m"))]


@pytest.mark.parametrize("proof", ["died", "unknown"])
def test_a_proof_that_the_copy_is_gone_takes_over_at_once(proof: str) -> None:
    standby = serving()
    actions = standby.role.died("r1", 0.1) if proof == "died" else standby.answers(0.1, epoch=None)
    assert actions == [Prepare("a2", "r1")]
    assert standby.prepared("a2", "r2", 0.2) == [Commit(2, Owner("r2", "a2", "m"))]


def test_the_owner_is_not_renewed_from_the_first_try_to_commit_another() -> None:
    standby = committing()
    standby.answers(2.3)
    assert standby.role.renewal() is None
    standby.role.commit_unreachable(4.0)
    assert standby.role.renewal() is None


def test_a_won_commit_renews_the_new_copy() -> None:
    standby = committing()
    assert standby.role.committed(2, True, 2.3) == []
    assert standby.role.renewal() == CopyLease("s", "a2", 2, is_copied=True)


def test_a_lost_commit_cancels_the_copy_and_follows_the_register() -> None:
    assert committing().role.committed(2, False, 2.3) == [CancelAttempt("a2"), FollowRegister()]


def test_a_commit_of_unknown_outcome_is_asked_for_until_it_is_known() -> None:
    standby = committing()
    standby.role.commit_unreachable(4.0)
    assert standby.role.tick(4.4) == []
    assert standby.role.tick(4.5) == [Commit(2, Owner("r2", "a2", "m"))]
    assert standby.role.tick(5.5) == []
    standby.role.committed(2, True, 5.6)
    assert standby.role.epoch == 2


def test_a_copy_that_died_while_it_was_committed_is_replaced_at_once() -> None:
    standby = committing()
    assert standby.role.died("r2", 2.3) == []
    assert standby.role.committed(2, True, 2.4) == [Prepare("a3", "r2")]


def test_a_copy_that_cannot_be_prepared_is_tried_again_a_little_later() -> None:
    standby = serving()
    standby.role.tick(0.9)
    assert standby.role.prepare_failed("a2", 1.0) == [CancelAttempt("a2")]
    assert standby.role.tick(1.1) == []
    assert standby.role.tick(1.5) == [Prepare("a3", "r1")]


def test_an_attempt_without_answer_is_given_up() -> None:
    standby = serving()
    standby.role.tick(0.9)
    assert standby.role.tick(5.8) == []
    assert standby.role.tick(6.0) == [CancelAttempt("a2")]


def test_a_copy_may_take_twice_as_long_as_the_one_before_that_was_too_late() -> None:
    role = serving().role
    assert role.tick(0.9) == [Prepare("a2", "r1")]
    assert role.tick(6.0) == [CancelAttempt("a2")]
    assert role.tick(6.5) == [Prepare("a3", "r1")]
    assert role.tick(16.0) == []
    assert role.tick(16.6) == [CancelAttempt("a3")]


def test_a_copy_that_was_prepared_too_late_is_cancelled() -> None:
    standby = serving()
    standby.role.tick(0.9)
    assert standby.prepared("a2", "r2", 9.0) == [CancelAttempt("a2")]


def test_a_manager_that_was_stopped_does_not_commit_what_it_prepared_before() -> None:
    standby = serving()
    standby.role.tick(0.9)
    standby.prepared("a2", "r2", 1.0)
    assert standby.role.tick(12.0) == [CancelAttempt("a2")]


def test_a_second_answer_to_prepare_does_not_cancel_the_owner() -> None:
    standby = serving()
    assert standby.prepared("a1", "r1", 0.1) == []


def test_news_of_the_owner_outdates_what_was_prepared() -> None:
    standby = serving()
    standby.role.tick(0.9)
    standby.prepared("a2", "r2", 1.0)
    assert standby.role.fed(1, True, 1.2) == [CancelAttempt("a2")]


def test_a_heartbeat_of_an_owner_without_a_lease_does_not_keep_another_copy_from_going_on() -> None:
    standby = serving()
    standby.role.tick(0.9)
    assert standby.role.fed(1, True, 1.2, is_news=False) == []
    standby.prepared("a2", "r2", 1.3)
    (commit,) = [action for at in range(14, 40) for action in standby.role.tick(at / 10)]
    assert isinstance(commit, Commit)


def behind() -> Standby:
    """Epoch 1 on r1 has gone on at 0.1 without feeding its standby."""
    standby = serving()
    standby.role.fell_behind(1, 0.1)
    return standby


def test_a_copy_that_is_behind_is_used_once_its_owner_is_not_waited_for_any_more() -> None:
    standby = behind()
    assert standby.role.tick(9.9) == [LookInRegister()]
    assert standby.role.tick(10.0) == [Prepare("a2", "r1")]


@pytest.mark.parametrize("proof", ["died", "unknown"])
def test_a_copy_that_is_behind_is_used_at_once_where_its_owner_is_known_to_be_gone(proof: str) -> None:
    standby = behind()
    actions = standby.role.died("r1", 0.2) if proof == "died" else standby.answers(0.2, epoch=None)
    assert actions == [Prepare("a2", "r1")]
    assert standby.prepared("a2", "r2", 0.3) == [Commit(2, Owner("r2", "a2", "m"))]


def test_a_copy_is_not_behind_any_more_once_its_feed_has_brought_the_full_state() -> None:
    standby = behind()
    standby.role.fed(1, False, 0.2)
    assert standby.role.tick(3.0) == []
    standby.role.fed(1, True, 3.1)
    assert standby.role.tick(5.5) == [Prepare("a2", "r1")]


def test_what_is_opened_from_a_copy_that_is_behind_is_not_ahead_of_it() -> None:
    standby = behind()
    standby.role.died("r1", 0.2)
    standby.prepared("a2", "r2", 0.3)
    standby.role.committed(2, True, 0.4)
    assert standby.role.tick(1.3) == [Prepare("a3", "r2")]


def test_a_standby_copy_is_used_for_as_long_as_a_replica_may_take_to_start() -> None:
    assert serving().role.tick(199.0) == [Prepare("a2", "r1")]


def test_a_session_that_no_replica_took_in_time_is_lost() -> None:
    [commit] = serving().role.tick(201.0)
    assert isinstance(commit, Commit)
    assert isinstance(commit.record, Ended)


def test_a_copy_that_was_fed_long_ago_is_used_where_its_owner_was_there_until_now() -> None:
    standby = behind()
    for second in range(1, 202):
        standby.answers(float(second))
    assert standby.role.died("r1", 202.0) == [Prepare("a2", "r1")]


def test_an_adopted_copy_that_never_answers_is_lost_in_the_end() -> None:
    standby = adopted()
    assert not any(isinstance(action, Commit) for action in standby.role.tick(199.0))
    assert any(isinstance(action, Commit) for action in standby.role.tick(202.0))


def test_what_a_slow_replica_has_made_as_the_owners_attempt_is_not_claimed() -> None:
    role = serving().role
    assert (role.claims("a1", "r1"), role.claims("a1", "r2")) == (True, False)


def test_what_is_being_prepared_is_claimed_wherever_it_is_tried() -> None:
    role = serving().role
    role.tick(0.9)
    assert role.claims("a2", "r2")
    assert role.claims("a2", "r3")


def test_what_an_earlier_epoch_sent_does_not_count() -> None:
    standby = committing()
    standby.role.committed(2, True, 2.3)
    standby.role.fell_behind(1, 2.4)
    assert standby.role.died("r2", 2.5) == [Prepare("a3", "r2")]


def test_nothing_is_kept_of_an_owner_while_another_copy_is_committed() -> None:
    standby = committing()
    assert not standby.role.is_fed(1)
    standby.role.committed(2, True, 2.3)
    assert [standby.role.is_fed(epoch) for epoch in (1, 2)] == [False, True]


GONE = Owner("r1", "a", "m", is_gone=True)
NEWEST, OLD = KeptCopy(1, is_newest=True), KeptCopy(1, is_newest=False)


def take_up(
    top: EpochRecord, kept: KeptCopy = NEWEST, *, is_forsaken: bool = False, wanted_for_s: float = 0.0
) -> Adopt | None:
    return decide_kept(CONFIG, top, "m", kept, is_forsaken=is_forsaken, wanted_for_s=wanted_for_s)


def wanted() -> Standby:
    """A copy that was adopted died before it fed its standby, and the register says so at epoch 3."""
    standby = adopted()
    assert standby.role.died("r1", 0.2) == [Commit(3, GONE)]
    assert standby.role.committed(3, True, 0.3) == []
    return standby


def test_a_session_without_any_copy_is_lost_once_the_register_says_so() -> None:
    standby = wanted()
    [commit] = standby.role.tick(30.4)
    assert isinstance(commit, Commit)
    assert commit.epoch == 4
    assert isinstance(commit.record, Ended)
    assert standby.role.committed(4, True, 30.5) == [SessionLost(commit.record.reason)]


def test_a_session_that_another_manager_goes_on_with_is_its_own() -> None:
    standby = wanted()
    assert standby.role.renewal() is None
    assert standby.role.tick(6.0) == [LookInRegister()]
    assert standby.role.looked(EpochRecord(4, Owner("r1", "a", "m2")), 6.1) == [FollowRegister()]


def test_a_session_that_was_held_is_wanted_at_once_where_its_owner_is_gone() -> None:
    hold = Hold(Destination("other", "cluster", ""), "t")
    standby = Standby(Adopt(3, Owner("r1", "a", "m", held=hold), is_gone=True))
    standby.role.tick(0.0)
    assert standby.role.committed(3, True, 0.1) == [Settle(hold)]
    assert standby.role.settled(False, 0.2) == [Commit(4, Owner("r1", "a", "m"))]
    assert standby.role.committed(4, True, 0.3) == [Commit(5, GONE)]


def test_an_owner_that_was_given_up_may_be_adopted_by_whoever_hears_it() -> None:
    assert not wanted().role.claims("a", "r1")
    assert decide(EpochRecord(3, GONE), epoch=2, without_lease_s=3.0) == Adopt(4, Owner("r1", "a", "m"))


def test_an_adopted_copy_is_given_up_once_its_lease_is_over_for_long() -> None:
    standby = adopted()
    standby.answers(0.1, epoch=2, attempt="a")
    assert Commit(3, GONE) not in standby.role.tick(10.0)
    assert standby.role.tick(10.1) == [Commit(3, GONE)]


def test_a_copy_that_was_kept_is_opened_at_once_where_the_owner_has_no_lease() -> None:
    adopt = take_up(EpochRecord(3, GONE))
    assert adopt == Adopt(4, Owner("r1", "a", "m"), is_gone=True)
    standby = Standby(adopt, kept=NEWEST)
    assert standby.role.tick(0.0) == [Commit(4, Owner("r1", "a", "m"))]
    assert standby.role.committed(4, True, 0.1) == [Prepare("a1", "r1")]


def test_a_copy_that_was_kept_is_behind_an_owner_that_is_adopted_again() -> None:
    standby = Standby(ADOPT, kept=NEWEST)
    standby.role.tick(0.0)
    standby.role.committed(2, True, 0.0)
    standby.answers(0.1, epoch=2, attempt="a")
    assert not any(isinstance(action, Prepare) for action in standby.role.tick(9.9))
    assert standby.role.tick(10.2) == [Prepare("a1", "r1")]


def test_a_copy_that_was_kept_is_left_alone_while_there_is_a_standby() -> None:
    assert take_up(EpochRecord(2, Owner("r1", "a", "m2"))) is None


def test_a_copy_that_was_kept_is_used_where_owner_and_standby_are_known_to_be_dead() -> None:
    adopt = take_up(EpochRecord(2, Owner("r1", "a", "m2")), is_forsaken=True)
    assert adopt == Adopt(3, Owner("r1", "a", "m"), is_gone=True)


def test_a_session_is_left_for_a_while_to_a_manager_that_may_have_kept_a_newer_copy() -> None:
    top = EpochRecord(3, GONE)
    assert take_up(top, OLD, wanted_for_s=9.9) is None
    assert take_up(top, OLD, wanted_for_s=10.0) == Adopt(4, Owner("r1", "a", "m"), is_gone=True)


def old() -> Standby:
    """A manager has adopted the session again; in between another one was fed."""
    standby = Standby(ADOPT, kept=OLD)
    standby.role.tick(0.0)
    standby.role.committed(2, True, 0.0)
    return standby


def test_an_old_copy_is_not_opened_before_those_who_may_have_a_newer_one_were_waited_for() -> None:
    standby = old()
    assert standby.role.renewal() == CopyLease("s", "a", 2, is_copied=False)
    assert standby.role.died("r1", 0.2) == [Commit(3, GONE)]
    assert standby.role.committed(3, True, 0.3) == [LookInRegister()]
    assert standby.role.tick(10.2) == [LookInRegister()]
    assert standby.role.tick(10.3) == [Prepare("a1", "r1")]
    standby.prepared("a1", "r2", 10.4)
    assert standby.role.phase is Phase.COMMITTING


@pytest.mark.parametrize(
    ("managers", "actions"), [(["m"], [Prepare("a1", "r1")]), (["m", "m2"], []), (None, [LookInRegister()])]
)
def test_an_old_copy_is_opened_once_nobody_is_there_who_may_have_a_newer_one(
    managers: list[str] | None, actions: list[Action]
) -> None:
    standby = Standby(ADOPT._replace(owner=Owner("r1", "a", "m", standbys=(StandbyEpoch("m2", 2),))), kept=OLD)
    standby.role.tick(0.0)
    standby.role.committed(2, True, 0.0)
    [commit] = standby.role.died("r1", 0.2)
    assert isinstance(commit, Commit)
    standby.role.committed(3, True, 0.3)
    assert isinstance(commit.record, Owner)
    assert standby.role.looked(EpochRecord(3, commit.record), 5.4, managers) == actions


def test_an_old_copy_is_as_good_as_any_once_it_was_fed() -> None:
    standby = old()
    standby.answers(0.1, epoch=2, attempt="a")
    standby.role.fed(2, True, 0.1)
    assert standby.role.renewal() == CopyLease("s", "a", 2, is_copied=True)
    assert standby.role.died("r1", 0.2) == [Prepare("a1", "r1")]


OWNER = Owner("r1", "a", "m", standbys=(StandbyEpoch("m", 2), StandbyEpoch("m2", 3), StandbyEpoch("m3", 5)))


@pytest.mark.parametrize(
    ("epoch", "managers", "is_newest"),
    [
        (5, ["m", "m2", "m3"], True),
        (4, ["m", "m2", "m3"], False),
        (4, ["m", "m2"], True),
        (2, ["m", "m2"], False),
        (2, ["m"], True),
        (4, None, False),
    ],
    ids=["as new", "a newer one", "which is gone", "an older one", "all gone", "unknown"],
)
def test_a_copy_is_the_newest_unless_a_manager_that_is_there_had_one_at_a_later_epoch(
    epoch: int, managers: list[str] | None, is_newest: bool
) -> None:
    assert KeptCopy.of(OWNER, "m", epoch, managers) == KeptCopy(epoch, is_newest)


def test_a_session_is_not_lost_if_another_manager_has_adopted_it() -> None:
    standby = adopted()
    standby.role.died("r1", 0.2)
    assert standby.role.committed(3, False, 0.3) == [FollowRegister()]


def test_a_higher_epoch_at_the_replica_ends_the_role() -> None:
    standby = serving()
    assert standby.answers(0.5, epoch=2) == [FollowRegister()]
    assert standby.role.tick(9.0) == []


def test_the_register_is_looked_into_now_and_then() -> None:
    standby = serving()
    for half in range(1, 11):
        standby.answers(half / 2 - 0.1)
    assert standby.role.tick(5.0) == [LookInRegister()]
    assert standby.role.looked(EpochRecord(1, Owner("r1", "a1", "m")), 5.1) == []


@pytest.mark.parametrize("top", [None, EpochRecord(2, Ended())], ids=["forgotten", "ended"])
def test_a_session_that_has_ended_elsewhere_is_not_served_on(top: EpochRecord | None) -> None:
    assert serving().role.looked(top, 5.0) == [FollowRegister()]


# Moves


def moving() -> Standby:
    """The replica r1 is being taken away, and its copy has been asked to yield."""
    standby = serving()
    standby.answers(0.1)
    assert standby.role.leaving({"r1"}, 0.2) == [Move("a2", 1)]
    return standby


def test_a_session_is_not_moved_from_a_replica_that_stays() -> None:
    standby = serving()
    standby.answers(0.1)
    assert standby.role.leaving({"r2"}, 0.2) == []


def test_an_owner_that_moves_is_renewed_until_what_it_handed_over_is_committed() -> None:
    standby = moving()
    assert standby.role.renewal() == CopyLease("s", "a1", 1, is_copied=True)
    standby.role.yielded("a2", 3.0)
    assert standby.role.moved("a2", "r2", 4.0) == [Commit(2, Owner("r2", "a2", "m"))]
    assert standby.role.renewal() is None
    standby.role.committed(2, True, 4.1)
    assert standby.role.renewal() == CopyLease("s", "a2", 2, is_copied=True)


def test_what_the_owner_sends_before_it_yields_is_kept_and_does_not_end_the_move() -> None:
    standby = moving()
    assert standby.role.fed(1, True, 0.3) == []
    assert standby.role.is_fed(1)
    assert standby.role.moved("a2", "r2", 0.4) == [Commit(2, Owner("r2", "a2", "m"))]


def test_a_move_that_failed_is_said_to_be_given_up_and_tried_again() -> None:
    standby = moving()
    assert standby.role.prepare_failed("a2", 0.3) == [CancelAttempt("a2")]
    assert standby.role.renewal() == CopyLease("s", "a1", 1, given_up=1, is_copied=True)
    assert standby.role.tick(0.7) == []
    assert standby.role.tick(0.8) == [Move("a3", 2)]


@pytest.mark.parametrize(("yields", "given_up_at"), [(False, 10.3), (True, 5.4)], ids=["yield", "copy"])
def test_a_move_without_an_answer_is_given_up(yields: bool, given_up_at: float) -> None:
    standby = moving()
    if yields:
        standby.role.yielded("a2", 0.3)
    standby.contacts.heard("r1", given_up_at, given_up_at)
    assert standby.role.tick(given_up_at - 0.2) == []
    assert standby.role.tick(given_up_at) == [CancelAttempt("a2")]
    assert standby.role.moved("a2", "r2", given_up_at) == [CancelAttempt("a2")]


def test_a_copy_that_has_yielded_in_vain_is_left_alone_for_a_while() -> None:
    standby = moving()
    standby.role.yielded("a2", 0.3)
    standby.role.prepare_failed("a2", 0.4)
    standby.contacts.heard("r1", 10.3, 10.3)
    assert standby.role.tick(10.3) == [LookInRegister()]
    assert standby.role.tick(10.4) == [Move("a3", 2)]


def test_a_copy_that_was_moved_too_late_is_cancelled() -> None:
    standby = moving()
    standby.role.yielded("a2", 0.3)
    assert standby.role.moved("a2", "r2", 5.4) == [CancelAttempt("a2")]


def test_a_session_whose_replica_dies_before_it_has_yielded_is_taken_over() -> None:
    standby = moving()
    assert standby.role.died("r1", 0.3) == [CancelAttempt("a2")]
    assert standby.role.tick(0.8) == [Prepare("a3", "r1")]


def test_what_is_handed_over_after_the_move_was_given_up_is_not_opened() -> None:
    standby = moving()
    standby.role.died("r1", 0.3)
    assert not standby.role.yielded("a2", 0.4)
    assert standby.role.moved("a2", "r2", 0.5) == [CancelAttempt("a2")]


def test_who_departs_after_that_was_given_up_stays() -> None:
    standby = serving()
    standby.answers(0.1)
    standby.role.evacuate(Destination("elsewhere", "other", ""))
    assert standby.role.tick(0.2) == [Depart("a2", 1, Destination("elsewhere", "other", ""))]
    assert standby.role.tick(10.3)[0] == CancelAttempt("a2")
    assert standby.role.departed("a2", 10.4) == []
    assert standby.role.phase is Phase.SERVING


def test_a_session_whose_replica_dies_after_it_has_yielded_goes_on_with_what_that_handed_over() -> None:
    standby = moving()
    standby.role.yielded("a2", 0.3)
    assert standby.role.died("r1", 0.4) == []
    assert standby.role.moved("a2", "r2", 0.5) == [Commit(2, Owner("r2", "a2", "m"))]


# Adoption

ADOPT = Adopt(2, Owner("r1", "a", "m"))


def adopted() -> Standby:
    standby = Standby(ADOPT)
    assert standby.role.tick(0.0) == [Commit(2, ADOPT.owner)]
    standby.role.committed(2, True, 0.0)
    return standby


def test_an_adopted_copy_is_renewed_where_it_is() -> None:
    assert adopted().role.renewal() == CopyLease("s", "a", 2)


def test_an_adopted_session_is_not_taken_over_before_it_was_fed() -> None:
    standby = adopted()
    standby.answers(0.1, epoch=2, attempt="a")
    assert standby.role.tick(4.0) == []


def test_leases_of_an_earlier_manager_are_waited_for() -> None:
    standby = adopted()
    standby.contacts.heard("r1", 0.1, 0.1)
    standby.role.fed(2, True, 1.0)
    standby.role.tick(1.9)
    standby.prepared("a1", "r2", 2.0)
    assert standby.role.tick(3.1) == []
    assert standby.role.tick(3.2) == [Commit(3, Owner("r2", "a1", "m"))]


def decide(
    top: EpochRecord | None, epoch: int | None, without_lease_s: float = 2.0, copied_at: int | None = 0
) -> Adopt | Drop | None:
    return decide_orphan(CONFIG, top, Orphan("s", "a", epoch, without_lease_s, copied_at), "r1", "m")


@pytest.mark.parametrize(
    ("copied_at", "standbys"), [(0, ()), (1, ()), (2, (StandbyEpoch("m2", 2),)), (None, (StandbyEpoch("m2", 2),))]
)
def test_who_adopts_a_session_names_the_standby_before_if_that_may_have_a_copy(
    copied_at: int | None, standbys: tuple[StandbyEpoch, ...]
) -> None:
    adopt = decide(EpochRecord(2, Owner("r1", "a", "m2")), epoch=2, copied_at=copied_at)
    assert adopt == Adopt(3, Owner("r1", "a", "m", standbys=standbys))


def test_the_owner_of_the_latest_epoch_is_adopted() -> None:
    assert decide(EpochRecord(1, Owner("r1", "a", "dead")), epoch=1) == Adopt(2, Owner("r1", "a", "m"))


def test_a_copy_that_its_manager_committed_but_never_renewed_is_adopted() -> None:
    top = EpochRecord(4, Owner("r1", "a", "dead"))
    owner = Owner("r1", "a", "m", standbys=(StandbyEpoch("dead", 4),))
    assert decide(top, epoch=None, without_lease_s=10.1) == Adopt(5, owner)


def test_a_copy_that_has_just_been_adopted_is_left_to_its_manager() -> None:
    assert decide(EpochRecord(2, Owner("r1", "a", "other")), epoch=1) is None


def test_a_manager_takes_up_what_it_committed_without_hearing_of_it() -> None:
    assert decide(EpochRecord(2, Owner("r1", "a", "m")), epoch=1) == Adopt(2, Owner("r1", "a", "m"))


@pytest.mark.parametrize(
    ("top", "epoch", "drop"),
    [
        (EpochRecord(3, Owner("r2", "b", "m2")), 2, Drop("a", 3)),
        (EpochRecord(3, Owner("r2", "a", "m2")), None, Drop("a", 3)),
        (EpochRecord(3, Ended()), 2, Drop("a", 3)),
        (None, 2, Drop("a", 2)),
        (None, None, Drop("a", 0)),
    ],
    ids=["overtaken", "on another replica", "ended", "forgotten", "never committed"],
)
def test_a_copy_that_is_not_the_owner_is_dropped(top: EpochRecord | None, epoch: int | None, drop: Drop) -> None:
    assert decide(top, epoch) == drop


# Contacts


def test_an_overtaken_answer_is_old_news() -> None:
    contacts = Contacts()
    assert contacts.heard("r1", 5.0, 1.0)
    assert not contacts.heard("r1", 4.0, 2.0)
    assert contacts.heard_at("r1") == 1.0


def test_a_replica_that_was_forgotten_is_a_stranger() -> None:
    contacts = Contacts()
    contacts.heard("r1", 5.0, 1.0)
    contacts.forget("r1")
    assert contacts.request("m", "r1", []).reading is None
