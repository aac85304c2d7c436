"""Viewers who share one stream of a real denoiser."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serving.config import Limits
from serving.errors import FrameOutOfRange, LimitReached, ReplicaLost, ServingError, SessionNotFound
from serving.gateway.session_service import SessionService
from serving.media.chunk import RecentChunks
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.weights.loader import OpenedModel
from tests.serving.gateway.ownership.local_cluster import Cluster, cluster, until
from tests.serving.gateway.ownership.scenes import ANNA, Viewer, created, cue, run, started
from tests.serving.worker.bench import NOON


def streams(there: Cluster) -> int:
    """Streams that leave the denoisers for viewers."""
    copies = [copy for bench in there.benches.values() for copy in bench.denoiser._copies.all]
    return sum(len(copy.audience.subscribers) for copy in copies)


async def viewers(manager: SessionService, session: pb.Session) -> int:
    return (await manager.get(session.id, ANNA)).viewers


async def settle(manager: SessionService, session: pb.Session, count: int) -> None:
    async with asyncio.timeout(60):
        while await viewers(manager, session) != count:
            await asyncio.sleep(0.02)


def test_many_viewers_share_one_stream_and_each_sees_every_frame_once(pocket: OpenedModel, tmp_path: Path) -> None:
    async def watch() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            manager = there.managers[0]
            session = await started(manager)
            first = Viewer(manager, session)
            await first.sees(33)
            late = [Viewer(manager, session) for _ in range(9)]
            await asyncio.gather(*(viewer.sees(81) for viewer in (first, *late)))
            assert streams(there) == 1
            await settle(manager, session, 10)
            for viewer in late:
                viewer.task.cancel()
            await settle(manager, session, 1)
            first.task.cancel()
            await settle(manager, session, 0)
            assert manager._spectators._streams == {}

    run(watch())


def test_viewers_that_come_while_a_session_moves_see_every_frame_once(pocket: OpenedModel, tmp_path: Path) -> None:
    async def move() -> None:
        async with cluster(pocket, tmp_path) as there:
            manager = there.managers[0]
            session = await started(manager)
            first = Viewer(manager, session)
            await first.sees(45)
            await there.kill(there.owner_of(session.id))
            late = [Viewer(manager, session) for _ in range(3)]
            await asyncio.gather(*(viewer.sees(105) for viewer in (first, *late)))
            assert first.resumed == 1

    run(move())


def test_a_viewer_that_asks_for_a_frame_that_is_gone_is_told_and_leaves_nothing(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def ask() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            manager = there.managers[0]
            session = await started(manager)
            first = Viewer(manager, session)
            await first.sees(9)
            (copy,) = there.benches["a"].denoiser._copies.all
            copy.audience.kept = RecentChunks(most=2)
            await first.sees(57)
            with pytest.raises(FrameOutOfRange, match="is not kept any more"):
                await Viewer(manager, session).task
            await settle(manager, session, 1)

    run(ask())


def test_a_reset_shows_every_viewer_the_new_take_from_its_first_frame(pocket: OpenedModel, tmp_path: Path) -> None:
    async def reset() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            manager = there.managers[0]
            session = await started(manager)
            both = [Viewer(manager, session) for _ in range(2)]
            await asyncio.gather(*(viewer.sees(33) for viewer in both))
            await manager.command(session.id, pb.Command(reset=pb.Reset()), ANNA)
            await manager.command(session.id, pb.Command(schedule_prompt=cue(NOON, 0)), ANNA)
            await manager.command(session.id, pb.Command(start=pb.Start()), ANNA)
            for viewer in both:
                await until(lambda viewer=viewer: len(second_take(viewer)) >= 45)  # type: ignore[misc]
                assert second_take(viewer) == list(range(len(second_take(viewer))))

    run(reset())


def second_take(viewer: Viewer) -> list[int]:
    chunks = [event.chunk for event in viewer.events if event.HasField("chunk") and event.take == 1]
    return [unit.frame for chunk in chunks for unit in chunk.units]


def test_viewers_are_told_when_their_session_ends(pocket: OpenedModel, tmp_path: Path) -> None:
    async def delete() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            manager = there.managers[0]
            session = await started(manager)
            both = [Viewer(manager, session) for _ in range(2)]
            await asyncio.gather(*(viewer.sees(9) for viewer in both))
            await manager.delete(session.id, ANNA)
            for viewer in both:
                await viewer.task
                states = [event.state.state for event in viewer.events if event.HasField("state")]
                assert states[-1] == pb.SESSION_STATE_ENDED
                assert viewer.events[-1].end.reason == pb.STREAM_END_REASON_SESSION_ENDED
            with pytest.raises(SessionNotFound):
                await Viewer(manager, session).task

    run(delete())


def test_a_viewer_of_a_session_where_nothing_happens_hears_heartbeats(pocket: OpenedModel, tmp_path: Path) -> None:
    async def wait() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            manager = there.managers[0]
            session = await started(manager)
            await manager.command(session.id, pb.Command(pause=pb.Pause()), ANNA)
            viewer = Viewer(manager, session)
            await until(lambda: sum(event.HasField("heartbeat") for event in viewer.events) >= 2)
            viewer.task.cancel()

    run(wait())


def test_who_comes_after_the_heartbeats_of_a_stream_have_failed_has_another_one(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(event: pb.Event) -> None:
        raise RuntimeError("not foreseen")

    async def listen() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            manager = there.managers[0]
            session = await created(manager)
            first = Viewer(manager, session)
            await until(lambda: len(first.events) > 0)
            shared = manager._spectators._streams[session.id]
            monkeypatch.setattr(shared._broadcast, "put", broken)
            await until(shared._beat.done)
            later = Viewer(manager, session)
            await until(lambda: any(event.HasField("heartbeat") for event in later.events))
            first.task.cancel()

    run(listen())


def test_a_stream_that_has_lasted_long_enough_says_so(pocket: OpenedModel, tmp_path: Path) -> None:
    async def wait() -> None:
        limits = Limits(stream_seconds=0.5)
        async with cluster(pocket, tmp_path, replicas="a", limits=limits) as there:
            viewer = Viewer(there.managers[0], await started(there.managers[0]))
            await viewer.task
            assert viewer.events[-1].end.reason == pb.STREAM_END_REASON_TIME_LIMIT
            assert viewer.events[-1].end.message == "a stream lasts 0.5 s; watch again from the next frame"

    run(wait())


async def ended(viewers: list[Viewer]) -> list[ServingError]:
    """The errors of those whose streams are over."""
    over = [viewer.task for viewer in viewers if viewer.task.done()]
    return [error for task in over if isinstance(error := task.exception(), ServingError)]


def test_a_session_has_so_many_viewers_over_all_managers_and_no_more(pocket: OpenedModel, tmp_path: Path) -> None:
    async def come() -> None:
        limits = Limits(viewers_per_session=5)
        async with cluster(pocket, tmp_path, replicas="a", managers=2, limits=limits) as there:
            session = await started(there.managers[0])
            first = [Viewer(there.managers[0], session) for _ in range(3)]
            await asyncio.gather(*(viewer.sees(9) for viewer in first))
            more = [Viewer(there.managers[number % 2], session) for number in range(10)]
            await until(lambda: sum(viewer.task.done() for viewer in more) == 8)
            await asyncio.gather(*(viewer.sees(33) for viewer in (*first, *more) if not viewer.task.done()))
            errors = await ended(more)
            assert {type(error) for error in errors} == {LimitReached}
            assert all("no more" in str(error) for error in errors)
            assert (await there.managers[1].get(session.id, ANNA)).viewers == 5

    run(come())


def test_a_viewer_who_leaves_makes_room_for_another(pocket: OpenedModel, tmp_path: Path) -> None:
    async def come() -> None:
        limits = Limits(viewers_per_session=2)
        async with cluster(pocket, tmp_path, replicas="a", limits=limits) as there:
            session = await started(there.managers[0])
            both = [Viewer(there.managers[0], session) for _ in range(2)]
            await asyncio.gather(*(viewer.sees(9) for viewer in both))
            both[0].task.cancel()
            await asyncio.sleep(0.5)
            await Viewer(there.managers[0], session).sees(33)

    run(come())


def test_a_viewer_of_whose_leaving_the_replica_did_not_hear_is_not_counted_for_ever(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def come() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            session = await started(there.managers[0])
            both = [Viewer(there.managers[0], session) for _ in range(2)]
            await asyncio.gather(*(viewer.sees(9) for viewer in both))
            pool: Any = there.managers[0]._pool
            call, unheard = pool.call, ["set_viewers"] * 2

            async def heard_later(replica: str, method: str, *arguments: Any, **options: Any) -> Any:
                if method in unheard:
                    unheard.remove(method)
                    raise ReplicaLost("it did not answer in time")
                return await call(replica, method, *arguments, **options)

            monkeypatch.setattr(pool, "call", heard_later)
            both[0].task.cancel()
            while (await there.managers[0].get(session.id, ANNA)).viewers == 2 or unheard:
                await asyncio.sleep(0.1)

    run(come())


def test_a_hundred_who_come_ask_the_replica_a_few_times(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def come() -> None:
        async with cluster(pocket, tmp_path, replicas="a", lease_s=20.0) as there:
            session = await started(there.managers[0])
            first = Viewer(there.managers[0], session)
            await first.sees(9)
            pool: Any = there.managers[0]._pool
            called: list[str] = []
            call = pool.call

            async def counted(replica: str, method: str, *arguments: Any, **options: Any) -> Any:
                called.append(method)
                return await call(replica, method, *arguments, **options)

            monkeypatch.setattr(pool, "call", counted)
            viewers = [Viewer(there.managers[0], session) for _ in range(100)]
            await asyncio.gather(*(viewer.sees(33) for viewer in viewers))
            assert 1 <= called.count("join_viewers") <= 10
            assert set(called) <= {"join_viewers", "set_viewers", "renew", "acknowledge"}
            for viewer in viewers:
                viewer.task.cancel()

    run(come())
