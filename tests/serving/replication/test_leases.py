"""The replica's side: what renews a lease, what ends a copy, and who is asked about it."""

from __future__ import annotations

import pytest

from serving.replication.leases import (
    CopyLease,
    CopyReport,
    LeaseConfig,
    Orphan,
    RenewAnswer,
    RenewRequest,
    ReplicaLeases,
)

CONFIG = LeaseConfig()


def leases(*attempts: str, now: float = 100.0) -> ReplicaLeases:
    """A replica with prepared copies of session s."""
    replica = ReplicaLeases(CONFIG)
    for attempt in attempts:
        assert replica.prepared("s", attempt, now)
    return replica


def renew(
    replica: ReplicaLeases,
    now: float,
    reading: float | None,
    attempt: str = "a",
    epoch: int = 1,
    manager: str = "m",
) -> RenewAnswer:
    return replica.renew(RenewRequest(manager, "r", reading, (CopyLease("s", attempt, epoch),)), now)


@pytest.mark.parametrize("lease_s", [0, -1, 61])
def test_a_lease_of_impossible_length_is_refused(lease_s: float) -> None:
    with pytest.raises(ValueError, match="lease is"):
        LeaseConfig(lease_s)


def test_the_times_of_the_protocol_follow_from_the_lease() -> None:
    times = (CONFIG.renew_every_s, CONFIG.takeover_wait_s, CONFIG.stream_timeout_s, CONFIG.orphan_after_s)
    assert times == pytest.approx((0.5, 2.2, 3.0, 3.0))
    assert (CONFIG.look_after_s, CONFIG.standby_expires_s) == (10.0, 200.0)


def test_a_prepared_copy_has_no_lease() -> None:
    assert not leases("a").has_lease("a", 100.0)


def test_first_contact_commits_the_copy_without_a_lease() -> None:
    replica = leases("a")
    answer = renew(replica, 101.0, reading=None)
    assert answer.copies == (CopyReport("s", "a", 1),)
    assert not replica.has_lease("a", 101.0)


def test_a_lease_runs_from_the_reading_that_is_carried() -> None:
    replica = leases("a")
    renew(replica, 101.5, reading=100.5)
    assert replica.has_lease("a", 102.49)
    assert not replica.has_lease("a", 102.5)


def test_a_renewal_that_waited_in_a_queue_renews_nothing() -> None:
    replica = leases("a")
    renew(replica, 110.0, reading=101.0)
    assert not replica.has_lease("a", 110.0)


def test_an_overtaken_renewal_does_not_shorten_a_lease() -> None:
    replica = leases("a")
    renew(replica, 102.0, reading=101.9)
    renew(replica, 102.1, reading=101.0)
    assert replica.has_lease("a", 103.8)


def test_a_reading_that_is_not_of_this_clock_renews_nothing() -> None:
    replica = leases("a")
    renew(replica, 101.0, reading=5000.0)
    assert not replica.has_lease("a", 101.0)


def test_a_lower_epoch_is_refused_and_told_of_the_higher_one() -> None:
    replica = leases("a")
    renew(replica, 101.0, reading=None, epoch=3, manager="new")
    answer = renew(replica, 101.5, reading=101.0, epoch=2, manager="old")
    assert answer.copies == (CopyReport("s", "a", 3),)
    assert not replica.has_lease("a", 101.5)
    assert replica.standby("a") == "new"


def test_a_higher_epoch_moves_the_copy_to_its_new_standby() -> None:
    replica = leases("a")
    renew(replica, 101.0, reading=100.9, epoch=1, manager="old")
    renew(replica, 101.5, reading=101.0, epoch=2, manager="new")
    assert (replica.epoch("a"), replica.standby("a")) == (2, "new")


def test_a_copy_that_is_not_there_can_never_come() -> None:
    replica = leases()
    assert renew(replica, 101.0, reading=None).copies == (CopyReport("s", "a", None),)
    assert not replica.prepared("s", "a", 102.0)


def test_a_cancelled_attempt_cannot_be_prepared_by_a_late_call() -> None:
    replica = leases()
    replica.cancel("a", 100.0)
    assert not replica.prepared("s", "a", 101.0)


def test_a_committed_copy_cannot_be_cancelled() -> None:
    replica = leases("a")
    renew(replica, 101.0, reading=None)
    replica.cancel("a", 101.0)
    assert replica.epoch("a") == 1


def test_a_higher_committed_epoch_ends_an_older_copy_of_the_session() -> None:
    replica = leases("old", "new")
    renew(replica, 101.0, reading=100.9, attempt="old", epoch=1)
    renew(replica, 101.5, reading=101.0, attempt="new", epoch=2)
    assert replica.pop_fenced() == ["old"]
    assert not replica.has_lease("old", 101.5)


def test_a_copy_that_may_be_the_next_owner_survives_a_fence() -> None:
    replica = leases("old", "next")
    renew(replica, 101.0, reading=None, attempt="old")
    replica.fence("s", 2, "elsewhere", 101.0)
    assert replica.pop_fenced() == ["old"]


def test_the_end_of_a_session_ends_all_its_copies() -> None:
    replica = leases("one", "two")
    renew(replica, 101.0, reading=None, attempt="one")
    replica.fence("s", 2, None, 101.0)
    assert sorted(replica.pop_fenced()) == ["one", "two"]


def test_a_drop_that_comes_late_does_not_end_what_was_committed_since() -> None:
    replica = leases("a")
    renew(replica, 101.0, reading=None, epoch=3)
    replica.drop("a", 2, 105.0)
    assert replica.pop_fenced() == []


def test_a_committed_copy_asks_after_the_silence_of_its_manager() -> None:
    replica = leases("a")
    renew(replica, 101.0, reading=100.9)
    assert replica.orphans(103.9) == []
    [orphan] = replica.orphans(104.1)
    assert (orphan.attempt, orphan.epoch) == ("a", 1)
    assert orphan.without_lease_s == pytest.approx(1.2)


def test_an_uncommitted_copy_asks_after_ten_seconds() -> None:
    replica = leases("a")
    assert replica.orphans(109.9) == []
    assert replica.orphans(110.1)[0].epoch is None


def test_a_copy_that_is_renewed_with_old_readings_only_asks_too() -> None:
    replica = leases("a")
    for second in range(13):
        answer = renew(replica, 101.0 + second, reading=100.0)
    assert [orphan.attempt for orphan in answer.orphans] == ["a"]


def test_a_stream_that_nobody_renews_expires() -> None:
    replica = leases()
    replica.streams.opened("v", 100.0)
    replica.renew(RenewRequest("m", "r", 101.0, (), ("v", "unknown")), 101.2)
    assert replica.streams.expired(103.9) == []
    assert replica.streams.expired(104.1) == ["v"]


def test_a_renewal_that_waited_renews_no_stream() -> None:
    replica = leases()
    replica.streams.opened("v", 100.0)
    replica.renew(RenewRequest("m", "r", 100.5, (), ("v",)), 109.0)
    assert replica.streams.expired(109.0) == ["v"]


# Moves


def renewed() -> ReplicaLeases:
    """Copy a at epoch 1, with a lease until 102."""
    replica = leases("a")
    renew(replica, 100.5, reading=100.0)
    return replica


def again(replica: ReplicaLeases, *, epoch: int = 1, given_up: int = 0) -> bool:
    """Whether the copy has a lease once it has been renewed."""
    lease = CopyLease("s", "a", epoch, given_up)
    replica.renew(RenewRequest("m", "r", 101.5, (lease,)), 101.6)
    return replica.has_lease("a", 101.7)


def test_a_copy_that_has_yielded_has_no_lease_and_takes_no_renewal() -> None:
    replica = renewed()
    assert replica.yield_lease("a", 1, 1, 101.0)
    assert not replica.has_lease("a", 101.0)
    assert not again(replica)


def test_a_copy_goes_on_where_its_move_was_given_up() -> None:
    replica = renewed()
    replica.yield_lease("a", 1, 1, 101.0)
    assert again(replica, given_up=1)


def test_a_copy_goes_on_where_another_manager_has_adopted_it() -> None:
    replica = renewed()
    replica.yield_lease("a", 1, 1, 101.0)
    assert again(replica, epoch=2)


def test_a_copy_does_not_yield_to_a_move_that_was_given_up_before() -> None:
    replica = renewed()
    assert again(replica, given_up=1)
    assert not replica.yield_lease("a", 1, 1, 101.7)
    assert replica.has_lease("a", 101.7)


@pytest.mark.parametrize(("attempt", "epoch"), [("a", 2), ("b", 1)], ids=["another epoch", "no copy"])
def test_what_the_manager_does_not_know_rightly_does_not_yield(attempt: str, epoch: int) -> None:
    replica = renewed()
    assert not replica.yield_lease(attempt, epoch, 1, 101.0)
    assert replica.has_lease("a", 101.0)


@pytest.mark.parametrize(("manager", "copied_at"), [("other", 2), ("m", 1)])
def test_a_standby_may_have_a_copy_from_when_it_is_sent_one_before_it_says_so(
    manager: str, copied_at: int
) -> None:
    replica = renewed()
    replica.renew(RenewRequest("m", "r", 100.5, (CopyLease("s", "a", 1, is_copied=True),)), 100.6)
    renew(replica, 100.8, 100.7, epoch=2, manager="other")
    replica.feeds("a", manager)
    [orphan] = replica.orphans(110.0)
    assert orphan.copied_at == copied_at


def test_a_manager_that_leaves_has_other_ones_asked_for_its_copies() -> None:
    replica = renewed()
    request = RenewRequest("m", "r", 100.5, (CopyLease("s", "a", 1),), leaving=True)
    assert replica.renew(request, 100.6).orphans == (Orphan("s", "a", 1, 0.0),)
    assert replica.has_lease("a", 100.7)
    assert renew(replica, 100.8, 100.7, epoch=2, manager="other").orphans == ()
