"""Sessions on real denoisers and managers that are taken away while they still answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.errors import SnapshotError
from engines.streaming import snapshot as stream_snapshot
from engines.streaming.generator import Generator
from engines.streaming.snapshot import Restored, Snapshot, restore
from serving.gateway.failover.failover import SAME_TIME_S
from serving.gateway.ownership.standby_session import StandbySession
from serving.gateway.session_service import SessionService
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.ownership import Phase
from serving.weights.loader import OpenedModel
from serving.worker import session_saver
from tests.serving.gateway.ownership.local_cluster import Cluster, cluster, until
from tests.serving.gateway.ownership.scenes import ANNA, END, Viewer, created, cue, run, started
from tests.serving.worker.bench import NIGHT


def leave(there: Cluster, session: pb.Session) -> str:
    """The session's replica is being taken away; its name."""
    owner = there.owner_of(session.id)
    there.leaving.add(owner)
    return owner


def resumed(viewer: Viewer) -> list[pb.Resumed]:
    return [event.resumed for event in viewer.events if event.HasField("resumed")]


def video(viewer: Viewer) -> list[bytes]:
    units = [unit for event in viewer.events if event.HasField("chunk") for unit in event.chunk.units]
    return [unit.data for unit in units[:END]]


async def moved(there: Cluster, manager: SessionService) -> Viewer:
    """A viewer of a session that changes its prompt, is moved, and goes on."""
    session = await started(manager)
    schedule = pb.Command(id="1", schedule_prompt=cue(NIGHT, 33))
    await manager.command(session.id, schedule, ANNA)
    viewer = Viewer(manager, session)
    await viewer.sees(45)
    before = leave(there, session)
    await viewer.sees(END)
    await until(lambda: there.leased(session.id) not in ([], [before]) and there.copies()[before] == 0)
    await until(lambda: viewer.resumed > 0)
    return viewer


def test_a_session_leaves_a_replica_that_is_taken_away_bit_for_bit(pocket: OpenedModel, tmp_path: Path) -> None:
    async def move() -> None:
        async with cluster(pocket, tmp_path) as there:
            viewer = await moved(there, there.managers[0])
            (said,) = resumed(viewer)
            assert said.kind == pb.RESUME_KIND_EXACT
            assert "is being taken away" in said.reason
            described = await there.managers[0].list(ANNA)
            assert described[0].resumed.kind == pb.RESUME_KIND_EXACT
        async with cluster(pocket, tmp_path) as alone:
            session = await started(alone.managers[0])
            await alone.managers[0].command(session.id, pb.Command(id="1", schedule_prompt=cue(NIGHT, 33)), ANNA)
            unmoved = Viewer(alone.managers[0], session)
            await unmoved.sees(END)
            assert video(viewer) == video(unmoved)

    run(move())


@pytest.mark.parametrize("why", ["too large", "another machine"])
def test_a_stream_that_cannot_move_as_it_is_is_rebuilt(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    async def move() -> None:
        async with cluster(pocket, tmp_path) as there:
            if why == "too large":
                monkeypatch.setattr(session_saver, "MOST_EXACT_BYTES", 1000)
            else:
                for bench in there.benches.values():
                    monkeypatch.setattr(bench.denoiser, "machine", lambda: {"torch": "another"})
            (said,) = resumed(await moved(there, there.managers[0]))
            assert said.kind == pb.RESUME_KIND_REBUILT

    run(move())


async def left_without_room(
    there: Cluster, manager: SessionService, watched_at: SessionService
) -> tuple[pb.Session, pb.Session, Viewer, str]:
    """A session whose replica is being taken away, one that fills the other replica, a viewer, and the replica."""
    session, other = await started(manager), await created(manager)
    viewer = Viewer(watched_at, session)
    await viewer.sees(21)
    return session, other, viewer, leave(there, session)


def test_a_session_stays_until_there_is_room_elsewhere(pocket: OpenedModel, tmp_path: Path) -> None:
    async def wait() -> None:
        async with cluster(pocket, tmp_path, slots=1) as there:
            manager = there.managers[0]
            session, other, viewer, before = await left_without_room(there, manager, manager)
            await viewer.sees(END)
            assert there.owner_of(session.id) == before
            await manager.delete(other.id, ANNA)
            await until(lambda: there.leased(session.id) not in ([], [before]))
            await viewer.sees(END + 36)
            assert viewer.resumed == 1

    run(wait())


def test_new_sessions_are_opened_where_nothing_is_taken_away(pocket: OpenedModel, tmp_path: Path) -> None:
    async def open_one() -> None:
        async with cluster(pocket, tmp_path) as there:
            there.leaving.add("a")
            assert there.owner_of((await created(there.managers[0])).id) == "b"

    run(open_one())


def test_a_paused_session_moves_too_and_goes_on_when_it_is_resumed(pocket: OpenedModel, tmp_path: Path) -> None:
    async def pause() -> None:
        async with cluster(pocket, tmp_path) as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer = Viewer(manager, session)
            await viewer.sees(45)
            await manager.command(session.id, pb.Command(pause=pb.Pause()), ANNA)
            before = leave(there, session)
            await until(lambda: there.leased(session.id) not in ([], [before]))
            await manager.command(session.id, pb.Command(resume=pb.Resume()), ANNA)
            await viewer.sees(END)

    run(pause())


def fails_once(monkeypatch: pytest.MonkeyPatch, thing: Any, name: str, fail: Callable[[], Any]) -> list[str]:
    """The next call of a method fails; gives the calls that did."""
    original, failed = getattr(thing, name), list[str]()

    def method(*arguments: Any, **named: Any) -> Any:
        if not failed:
            failed.append(name)
            return fail()
        return original(*arguments, **named)

    monkeypatch.setattr(thing, name, method)
    return failed


async def never(*_: Any) -> None:
    await asyncio.sleep(3600)


def test_a_stream_that_the_other_replica_does_not_take_as_it_is_is_rebuilt_the_next_time(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(generator: Generator, snapshot: Snapshot, *, suspended: bool = False) -> Restored:
        if snapshot.kind == "exact":
            raise SnapshotError("the snapshot's window has another format")
        return restore(generator, snapshot, suspended=suspended)

    async def move() -> None:
        async with cluster(pocket, tmp_path, lease_s=0.4) as there:
            monkeypatch.setattr(stream_snapshot, "restore", refuse)
            (said,) = resumed(await moved(there, there.managers[0]))
            assert said.kind == pb.RESUME_KIND_REBUILT

    run(move())


@pytest.mark.parametrize("step", ["hand_over", "prepare"])
def test_where_a_move_fails_the_session_goes_on_and_moves_later(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def fail() -> None:
        async with cluster(pocket, tmp_path, prepare_timeout_s=0.5) as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer = Viewer(manager, session)
            await viewer.sees(45)
            before = leave(there, session)
            (target,) = set(there.benches) - {before}
            failing = there.benches[before if step == "hand_over" else target].denoiser
            failed = fails_once(monkeypatch, failing, step, lambda: never())
            await viewer.sees(END + 36)
            await until(lambda: there.leased(session.id) == [target])
            assert failed == [step]
            await until(lambda: viewer.resumed == 1)

    run(fail())


def test_a_command_that_comes_in_the_middle_of_a_move_is_applied_once(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def command() -> None:
        async with cluster(pocket, tmp_path) as there:
            manager, asked = there.managers[0], list[asyncio.Task[pb.Receipt]]()
            session = await started(manager)
            viewer = Viewer(manager, session)
            await viewer.sees(45)
            standby = manager._failover._sessions[session.id]
            yielded = standby.ownership.yielded

            def ask(attempt: str, now: float) -> bool:
                schedule = pb.Command(id="7", client_id="anna", schedule_prompt=cue(NIGHT, 141))
                asked.append(asyncio.create_task(manager.command(session.id, schedule, ANNA)))
                return yielded(attempt, now)

            monkeypatch.setattr(standby.ownership, "yielded", ask)
            before = leave(there, session)
            await until(lambda: there.leased(session.id) not in ([], [before]))
            assert (await asked[0]).cue_frame == 141
            described = await manager.get(session.id, ANNA)
            assert [pending.frame for pending in described.pending] == [141]

    run(command())


# A manager that is taken away.


def test_a_manager_that_leaves_hands_its_sessions_to_another_one_without_a_pause(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def hand_over() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            leaving, other = there.managers
            session = await started(leaving)
            viewer = Viewer(other, session)
            await viewer.sees(45)
            leaving._failover.leave()
            await until(lambda: not leaving._failover.is_standby)
            assert other._failover.is_standby_of(session.id)
            await viewer.sees(END)
            await there.kill(there.owner_of(session.id))
            await viewer.sees(END + 36)
            assert viewer.resumed == 1

    run(hand_over())


@pytest.mark.parametrize("number", [0, 1], ids=["of its standby", "of a viewer alone"])
def test_a_manager_that_leaves_with_a_replica_stays_until_the_sessions_have_moved(
    pocket: OpenedModel, tmp_path: Path, number: int
) -> None:
    async def leave_both() -> None:
        async with cluster(pocket, tmp_path, slots=1, managers=2) as there:
            leaving = there.managers[number]
            session, other, viewer, before = await left_without_room(there, there.managers[0], leaving)
            going = asyncio.create_task(leaving.finish_moves())
            await asyncio.sleep(SAME_TIME_S + 0.3)
            await viewer.sees(END)
            assert not going.done(), "there is no room for the session on the other replica"
            await leaving.delete(other.id, ANNA)
            await going
            assert there.leased(session.id) not in ([], [before])

    run(leave_both())


def test_a_manager_dies_in_the_middle_of_a_move_and_another_one_moves_the_session(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            dying, other = there.managers
            session = await started(dying)
            viewer = Viewer(other, session)
            await viewer.sees(45)
            standby: StandbySession = dying._failover._sessions[session.id]
            monkeypatch.setattr(standby.ownership, "yielded", lambda *_: True)
            monkeypatch.setattr(standby.ownership, "moved", lambda *_: [])
            before = leave(there, session)
            await until(lambda: standby.ownership.phase is Phase.MOVING and not there.leased(session.id))
            await there.kill_manager(dying)
            await viewer.sees(END)
            await until(lambda: there.leased(session.id) not in ([], [before]))

    run(die())
