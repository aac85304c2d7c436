"""Takeovers in which more fails than a replica: sessions go on all the same, or it is told that they are lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serving.auth import Caller, Tokens
from serving.config import Limits
from serving.errors import LimitReached, SessionLost
from serving.gateway.failover.renewals import RENEWALS_ON_THEIR_WAY
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.leases import LeaseConfig
from serving.weights.loader import OpenedModel
from serving.worker.state.active_session import ActiveSession
from tests.serving.gateway.ownership.local_cluster import Cluster, cluster, until
from tests.serving.gateway.ownership.scenes import ANNA, END, Viewer, created, run, started


class Broken(Exception):
    """Nobody has foreseen it."""


def break_opening(there: Cluster, name: str, times: int) -> None:
    """Have a replica fail to open sessions."""
    factory, left = there.benches[name].denoiser._factory, times
    whole = factory.open

    async def open_or_fail(*arguments: Any) -> ActiveSession:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Broken
        return await whole(*arguments)

    factory.open = open_or_fail  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize(("replicas", "times"), [("ab", 1), ("abc", 1000)])
def test_a_session_goes_on_though_a_replica_fails_to_open_it(
    pocket: OpenedModel, tmp_path: Path, replicas: str, times: int
) -> None:
    async def fail() -> None:
        async with cluster(pocket, tmp_path, replicas=replicas, managers=2) as there:
            session = await started(there.managers[0])
            viewers = [Viewer(manager, session) for manager in there.managers]
            await viewers[0].sees(45)
            owner = there.owner_of(session.id)
            asked_first = min(set(replicas) - {owner})
            there.benches[asked_first].denoiser._copies._slots += 1
            break_opening(there, asked_first, times)
            await there.kill(owner)
            for viewer in viewers:
                await viewer.sees(END)

    run(fail())


def test_a_new_session_is_opened_by_another_replica_or_its_client_is_told_why_not(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def fail() -> None:
        async with cluster(pocket, tmp_path) as there:
            break_opening(there, "a", 1000)
            there.benches["a"].denoiser._copies._slots += 1
            assert there.owner_of((await created(there.managers[0])).id) == "b"
            break_opening(there, "b", 1000)
            with pytest.raises(Broken):
                await created(there.managers[0])

    run(fail())


def test_a_session_whose_standby_fails_as_its_replica_dies_goes_on_from_its_copy(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise Broken

    async def fail() -> None:
        async with cluster(pocket, tmp_path) as there:
            session = await started(there.managers[0])
            viewer = Viewer(there.managers[0], session)
            await viewer.sees(45)
            standby = there.managers[0]._failover._sessions[session.id]
            monkeypatch.setattr(standby, "replica_died", fails)
            await there.kill(there.owner_of(session.id))
            await viewer.sees(END)
            assert viewer.resumed == 1

    run(fail())


def test_a_fork_whose_answer_is_lost_is_one_session(pocket: OpenedModel, tmp_path: Path) -> None:
    async def fork() -> None:
        async with cluster(pocket, tmp_path, replicas="a", slots=3) as there:
            manager, bench = there.managers[0], there.benches["a"]
            session = await started(manager)
            there.links["a"].lost_answers = {"fork"}
            made = await manager.fork(pb.ForkSessionRequest(session_id=session.id), ANNA)
            assert (bench.denoiser.free, bench.open_runs()) == (1, 2)
            for one in (session, made):
                await manager.delete(one.id, ANNA)
            await bench.denoiser._copies.settled()
            assert (bench.denoiser.free, bench.open_runs(), bench.decoder.keys) == (3, 0, ())

    run(fork())


@pytest.mark.parametrize("replica_dies", [True, False], ids=["with its replica", "alone"])
def test_a_session_of_which_both_copies_are_lost_is_no_more_one_of_its_callers(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replica_dies: bool
) -> None:
    anna, options = Caller("anna"), pb.SessionOptions(height=32, width=48)
    monkeypatch.setattr(LeaseConfig, "copy_wanted_s", 1.0)

    async def lose() -> None:
        limits = Limits(sessions_per_token=1)
        async with cluster(pocket, tmp_path, managers=2, tokens=Tokens({"anna": "x"}), limits=limits) as there:
            first, other = there.managers
            session = await first.create(pb.CreateSessionRequest(options=options), anna)
            with pytest.raises(LimitReached):
                await other.create(pb.CreateSessionRequest(options=options), anna)
            owner = there.owner_of(session.id)
            await there.kill_manager(first)
            if replica_dies:
                await there.kill(owner)
            for copy in there.benches[owner].denoiser._copies.all:
                there.benches[owner].denoiser.drop(copy.attempt, 1)
            while await there.register.open_sessions():
                await asyncio.sleep(0.1)
            with pytest.raises(SessionLost, match="no complete copy of the session was elsewhere"):
                await other.get(session.id, anna)
            await other.create(pb.CreateSessionRequest(options=options), anna)

    run(lose())


def test_a_replica_whose_answer_was_lost_keeps_no_copy_beside_the_one_that_was_taken(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def lose() -> None:
        async with cluster(pocket, tmp_path, replicas="abc") as there:
            session = await started(there.managers[0])
            viewer = Viewer(there.managers[0], session)
            await viewer.sees(45)
            owner = there.owner_of(session.id)
            asked_first = min(set("abc") - {owner})
            there.benches[asked_first].denoiser._copies._slots += 1
            there.links[asked_first].lost_answers = {"prepare"}
            await there.kill(owner)
            await viewer.sees(END)
            assert there.owner_of(session.id) not in (owner, asked_first)
            await until(lambda: there.links[asked_first].calls["cancel"] > 0)
            assert there.copies()[asked_first] == 0

    run(lose())


def test_a_renewal_leaves_though_those_before_it_are_not_answered_yet(pocket: OpenedModel, tmp_path: Path) -> None:
    async def wait() -> None:
        async with cluster(pocket, tmp_path, replicas="a", lease_s=2.0) as there:
            await created(there.managers[0])
            there.links["a"].lost_methods = {"renew"}
            await until(lambda: there.links["a"].on_their_way["renew"] == RENEWALS_ON_THEIR_WAY)

    run(wait())
