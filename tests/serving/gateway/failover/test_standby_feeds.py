"""Feeds of standby copies that fail for as long as they are tried, and in ways that nobody foresaw."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from serving.errors import ReplicaLost
from serving.weights.loader import OpenedModel
from tests.serving.gateway.ownership.local_cluster import cluster, until
from tests.serving.gateway.ownership.scenes import END, Viewer, run, started

TRIES = 4


class Broken(Exception):
    """Nobody has foreseen it."""


def test_a_copy_that_cannot_be_kept_is_asked_for_ever_more_rarely_and_that_is_said_once(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried_at = list[float]()

    def fails(_: object) -> None:
        tried_at.append(asyncio.get_running_loop().time())
        raise Broken

    async def fail() -> None:
        async with cluster(pocket, tmp_path) as there:
            session = await started(there.managers[0])
            viewer, owner = Viewer(there.managers[0], session), there.owner_of(session.id)
            await viewer.sees(33)
            standby = there.managers[0]._failover._sessions[session.id]
            with monkeypatch.context() as broken:
                broken.setattr(standby._copy, "apply", fails)
                await until(lambda: len(tried_at) == TRIES)
            first_s = there.managers[0]._failover._config.renew_every_s / 2
            for number, (before, after) in enumerate(pairwise(tried_at)):
                assert after - before >= first_s * 2**number
            said = [record for record in caplog.records if record.message == "the standby copy cannot be kept"]
            assert len(said) == 1
            await until(lambda: standby._feed_lost_at is None)
            await there.kill(owner)
            await viewer.sees(END)

    run(fail())


def test_a_feed_that_ends_in_a_way_that_nobody_foresaw_is_noticed_and_the_session_adopted(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: object) -> None:
        raise ReplicaLost("nobody answers")

    async def breaks_once() -> None:
        monkeypatch.undo()
        raise Broken

    async def fail() -> None:
        async with cluster(pocket, tmp_path) as there:
            session = await started(there.managers[0])
            viewer, sessions = Viewer(there.managers[0], session), there.managers[0]._failover._sessions
            await viewer.sees(33)
            standby = sessions[session.id]
            monkeypatch.setattr(standby._copy, "apply", lost)
            monkeypatch.setattr(standby, "_look", breaks_once)
            await until(lambda: sessions.get(session.id) not in (None, standby))
            await until(lambda: sessions[session.id]._copy.is_full and bool(there.leased(session.id)))
            await there.kill(there.owner_of(session.id))
            await viewer.sees(END)

    run(fail())
