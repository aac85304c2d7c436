"""What a manager does with the copies that it has kept of sessions which others have adopted."""

from __future__ import annotations

import pytest

from serving.replication.adoption import Adopt
from serving.replication.kept_copies import KeptCopies, KeptCopy
from serving.replication.leases import LeaseConfig
from serving.replication.register import Ended, EpochRecord, Owner, StandbyEpoch
from serving.replication.standby import StandbyCopy

ADOPTED = Owner("r1", "a", "m2", standbys=(StandbyEpoch("m", 1),))
GONE = Owner("r1", "a", "m2", is_gone=True, standbys=(StandbyEpoch("m", 1), StandbyEpoch("m3", 2)))
TAKEN_UP = Adopt(4, Owner("r1", "a", "m", standbys=GONE.standbys), is_gone=True)
EVERYBODY = ("m", "m2", "m3")


@pytest.fixture
def kept() -> KeptCopies:
    kept = KeptCopies(LeaseConfig(), "m")
    kept.keep("s", StandbyCopy(), 1, 0.0)
    return kept


def test_a_copy_is_kept_while_another_manager_looks_after_the_session(kept: KeptCopies) -> None:
    assert kept.look("s", EpochRecord(2, ADOPTED), EVERYBODY, {"r1"}, 199.0) is None
    assert kept.sessions == ["s"]


@pytest.mark.parametrize("top", [None, EpochRecord(3, Ended())])
def test_a_copy_of_a_session_that_is_over_is_let_go(kept: KeptCopies, top: EpochRecord | None) -> None:
    assert kept.look("s", top, EVERYBODY, (), 1.0) is None
    assert kept.sessions == []


def test_a_copy_that_is_kept_for_too_long_is_let_go(kept: KeptCopies) -> None:
    assert kept.look("s", EpochRecord(2, ADOPTED), EVERYBODY, (), 200.1) is None
    assert kept.sessions == []


def test_a_session_is_taken_up_whose_owner_and_standby_are_dead(kept: KeptCopies) -> None:
    adopt = kept.look("s", EpochRecord(2, ADOPTED), ("m",), {"r1"}, 1.0)
    assert adopt == Adopt(3, Owner("r1", "a", "m", standbys=ADOPTED.standbys), is_gone=True)


def test_a_manager_that_may_have_a_newer_copy_comes_first(kept: KeptCopies) -> None:
    top = EpochRecord(3, GONE)
    assert kept.look("s", top, EVERYBODY, (), 5.0) is None
    assert kept.look("s", top, EVERYBODY, (), 14.9) is None
    assert kept.look("s", top, EVERYBODY, (), 15.0) == TAKEN_UP


def test_one_that_is_not_there_is_not_waited_for(kept: KeptCopies) -> None:
    assert kept.look("s", EpochRecord(3, GONE), ("m", "m2"), (), 5.0) == TAKEN_UP
    assert kept.of("s", TAKEN_UP.owner, ("m", "m2")) == KeptCopy(1, is_newest=True)
