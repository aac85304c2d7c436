from __future__ import annotations

import pickle
from dataclasses import asdict

import pytest

from serving.deployments.scaling.policy import NOTICED_S, ReplicaReport
from serving.deployments.scaling.replica_stats import BusyTime, ReplicaStats
from serving.errors import MemoryFull, SlotsFull
from serving.protocol.status import FULL_RETRY_S, retry_after_of


def refused(stats: ReplicaStats, error: SlotsFull) -> SlotsFull:
    with pytest.raises(SlotsFull) as raised, stats.refusing():
        raise error
    return raised.value


def test_a_report_is_what_the_policy_reads() -> None:
    sent = ReplicaStats(7.0).report(used=1, slots=2, admitted=3, refused=4)
    assert sent == asdict(ReplicaReport(1, 2, 3, 4, 7.0))


def test_who_is_refused_is_told_to_come_back_when_another_replica_may_be_there() -> None:
    stats = ReplicaStats(20.0)
    assert retry_after_of(refused(stats, SlotsFull("full"))) == FULL_RETRY_S
    stats.report(used=2, slots=2)
    told = refused(stats, MemoryFull("no memory is left"))
    assert (type(told), str(told), retry_after_of(told)) == (MemoryFull, "no memory is left", NOTICED_S + 20.0)


def test_what_another_stage_has_said_of_coming_back_stays() -> None:
    stats = ReplicaStats(20.0)
    stats.report(used=2, slots=2)
    assert refused(stats, SlotsFull("the decoder is full", 44.0)).retry_after_s == 44.0


def test_when_to_come_back_survives_the_way_between_processes() -> None:
    again = pickle.loads(pickle.dumps(SlotsFull("full", 9.0)))
    assert (str(again), again.retry_after_s) == ("full", 9.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_share_of_time_is_that_of_the_last_half_minute() -> None:
    clock = Clock()
    busy = BusyTime(clock)
    assert busy.share() == 0.0
    for _ in range(120):
        clock.now += 1.0
        busy.worked(0.8)
        busy.share()
    assert busy.share() == pytest.approx(0.8, abs=0.02)
    clock.now += 1.0
    assert 0.7 < busy.share() < 0.8
    clock.now += 60.0
    assert busy.share() == 0.0
