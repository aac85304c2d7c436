"""Suspended sessions among several replicas: they are resumed where there is room, and outlive their replica."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.errors import SlotsFull
from serving.gateway.session_service import SessionService
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.weights.loader import OpenedModel
from tests.serving.gateway.ownership.local_cluster import Cluster, cluster, until
from tests.serving.gateway.ownership.scenes import ANNA, Viewer, run, started

RESUME = pb.Command(id="resume", resume=pb.Resume())


async def suspended(manager: SessionService) -> tuple[pb.Session, Viewer]:
    session = await started(manager)
    viewer = Viewer(manager, session)
    await viewer.sees(33)
    await manager.command(session.id, pb.Command(id="pause", pause=pb.Pause()), ANNA)
    while not (await manager.get(session.id, ANNA)).suspended:
        await asyncio.sleep(0.05)
    return session, viewer


async def filled(there: Cluster) -> list[pb.Session]:
    """A session in every slot."""
    others = []
    while any(bench.denoiser.free for bench in there.benches.values()):
        others.append(await started(there.managers[0]))
    return others


async def goes_on(viewer: Viewer, frames: int = 36) -> None:
    await viewer.sees(len(viewer.frames) + frames)


def test_a_suspended_session_is_resumed_where_there_is_room(pocket: OpenedModel, tmp_path: Path) -> None:
    async def move() -> None:
        async with cluster(pocket, tmp_path, slots=1, suspend_after=0.1) as there:
            manager = there.managers[0]
            session, viewer = await suspended(manager)
            before = there.owner_of(session.id)
            others = await filled(there)
            with pytest.raises(SlotsFull):
                await manager.command(session.id, RESUME, ANNA)
            (gone,) = [other for other in others if there.owner_of(other.id) != before]
            await manager.delete(gone.id, ANNA)
            receipt = await manager.command(session.id, RESUME, ANNA)
            assert receipt.stage == pb.RECEIPT_STAGE_ACCEPTED
            assert there.owner_of(session.id) != before
            await goes_on(viewer)
            assert there.copies() == {"a": 1, "b": 1}

    run(move())


def test_a_suspended_session_outlives_its_replica_though_no_slot_is_free(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def lose() -> None:
        async with cluster(pocket, tmp_path, slots=1, suspend_after=0.1) as there:
            manager = there.managers[0]
            session, viewer = await suspended(manager)
            before = there.owner_of(session.id)
            others = await filled(there)
            await there.kill(before)
            await until(lambda: there.leased(session.id) not in ([], [before]))
            assert (await manager.get(session.id, ANNA)).suspended
            with pytest.raises(SlotsFull):
                await manager.command(session.id, RESUME, ANNA)
            for other in others:
                await manager.delete(other.id, ANNA)
            await manager.command(session.id, RESUME, ANNA)
            await goes_on(viewer)

    run(lose())


@pytest.mark.parametrize("is_full", [False, True])
def test_a_suspended_session_leaves_a_replica_that_is_taken_away(
    pocket: OpenedModel, tmp_path: Path, is_full: bool
) -> None:
    async def drain() -> None:
        async with cluster(pocket, tmp_path, slots=1, suspend_after=0.1) as there:
            session, viewer = await suspended(there.managers[0])
            before = there.owner_of(session.id)
            others = await filled(there) if is_full else []
            there.leaving.add(before)
            await until(lambda: there.leased(session.id) not in ([], [before]))
            assert (await there.managers[0].get(session.id, ANNA)).suspended
            assert all(there.leased(other.id) for other in others)
            for other in others:
                await there.managers[0].delete(other.id, ANNA)
            await there.managers[0].command(session.id, RESUME, ANNA)
            await goes_on(viewer)

    run(drain())
