"""What managers count, as real denoisers die or leave behind them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.weights.loader import OpenedModel
from tests.serving.gateway.ownership.local_cluster import cluster, until
from tests.serving.gateway.ownership.scenes import ANNA, Viewer, created, run, started


def test_a_session_whose_replica_dies_and_one_whose_replica_leaves_are_told_apart(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def lose() -> None:
        async with cluster(pocket, tmp_path, replicas="abc") as there:
            session = await started(there.managers[0])
            viewer = Viewer(there.managers[0], session)
            await viewer.sees(21)
            first = there.owner_of(session.id)
            there.leaving.add(first)
            await until(lambda: first not in there.leased(session.id) and bool(there.leased(session.id)))
            await viewer.sees(69)
            await there.kill(there.owner_of(session.id))
            await viewer.sees(117)
            assert there.counts.failovers == [("denoiser", True), ("denoiser", False)]

    run(lose())


def test_a_standby_that_another_manager_takes_on_is_counted(pocket: OpenedModel, tmp_path: Path) -> None:
    async def adopt() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            gone, other = there.managers
            session = await started(gone)
            await gone.stop()
            await until(lambda: other._failover.is_standby_of(session.id))
            assert there.counts.failovers == [("manager", False)]

    run(adopt())


def test_chunks_are_counted_once_for_each_viewer(pocket: OpenedModel, tmp_path: Path) -> None:
    async def send() -> None:
        async with cluster(pocket, tmp_path) as there:
            manager = there.managers[0]
            session = await created(manager)
            viewers = [Viewer(manager, session) for _ in range(2)]
            await until(lambda: all(viewer.events for viewer in viewers))
            await manager.command(session.id, pb.Command(start=pb.Start()), ANNA)
            for viewer in viewers:
                await viewer.sees(33)
            await manager.delete(session.id, ANNA)
            await asyncio.gather(*(viewer.task for viewer in viewers))
            chunks = [event for viewer in viewers for event in viewer.events if event.HasField("chunk")]
            assert there.counts.nbytes == sum(event.ByteSize() for event in chunks)
            assert there.counts.frames == 0

    run(send())
