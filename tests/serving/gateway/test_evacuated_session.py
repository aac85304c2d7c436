"""Sessions that leave one server and go on in another one, as bytes; and those that earlier releases have left."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from serving.auth import Caller
from serving.errors import InvalidRequest, NoLease
from serving.gateway.evacuated_session import CAME, arrived, evacuated
from serving.gateway.session_snapshot import restored, unpack
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.messages import Departure, SessionSpec
from serving.weights.loader import OpenedModel
from tests.serving.gateway.ownership.local_cluster import Cluster, cluster
from tests.serving.gateway.ownership.scenes import ANNA, Viewer, cue, run, started
from tests.serving.worker.bench import NIGHT, SNOW, at_work, chunks, settled, spec
from tests.serving.worker.video_bench import controlled, video_spec

STORED = Path(__file__).parents[2] / "assets" / "snapshots"
RELEASES, RESTYLED = sorted(STORED.glob("*.evacuated")), sorted(STORED.glob("*.restyled"))
MOST = 1 << 26


async def departed(there: Cluster) -> tuple[pb.EvacuatedSession, Viewer]:
    """A session that has changed its prompt and has another cue pending, as it left; and who has watched it."""
    manager = there.managers[0]
    session = await started(manager)
    for number, (text, frame) in enumerate(((NIGHT, 33), (SNOW, 400))):
        command = pb.Command(id=str(number), client_id="anna", schedule_prompt=cue(text, frame))
        await manager.command(session.id, command, ANNA)
    viewer = Viewer(manager, session)
    await viewer.sees(57)
    standby = manager._failover._sessions[session.id].ownership
    assert standby.owner is not None
    arguments = (standby.owner.attempt, standby.epoch, 1, MOST)
    departure: Departure = await there.pool.call(standby.owner.replica, "depart", *arguments, timeout_s=10)
    with pytest.raises(NoLease):
        await there.pool.call(standby.owner.replica, "describe", standby.owner.attempt, timeout_s=10)
    return evacuated(departure, MOST), viewer


def spec_of(pocket: OpenedModel, session: pb.Session) -> SessionSpec:
    return replace(spec(pocket, session.id), stream=replace(spec(pocket).stream, seed=session.options.seed))


def test_a_session_goes_on_elsewhere_with_all_that_its_clients_know(pocket: OpenedModel, tmp_path: Path) -> None:
    async def go() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            left, viewer = await departed(there)
        saved = unpack(pb.EvacuatedSession.FromString(left.SerializeToString()).snapshot)
        resume = arrived(left, saved, spec_of(pocket, saved.session))
        assert [entry.command_id for entry in resume.record.receipts] == ["0", "1"]
        assert [found.command_id for found in resume.record.pending] == ["1"]
        async with at_work(pocket) as bench:
            here = await bench.open(spec_of(pocket, saved.session), resume=resume)
            assert (here.state, here.resumed.reason) == (pb.SESSION_STATE_RUNNING, CAME)
            again = pb.Command(id="1", client_id="anna", schedule_prompt=cue(SNOW, 400))
            assert (await bench.denoiser.command(here.id, again)).repeated
            seen = [
                unit.data for chunk in await chunks(bench, here.id, here.next_frame + 24) for unit in chunk.units
            ]
        watched = [unit.data for e in viewer.events if e.HasField("chunk") for unit in e.chunk.units]
        assert seen[: len(watched)] == watched
        assert len(seen) >= here.next_frame + 24

    run(go())


def test_the_copy_that_a_session_left_goes_on_where_its_move_is_given_up(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def give_up() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            left, viewer = await departed(there)
            assert there.leased(unpack(left.snapshot).session.id) == []
            role = there.managers[0]._failover._sessions[unpack(left.snapshot).session.id].ownership
            role._given_up = 1
            await viewer.sees(120)

    run(give_up())


@pytest.mark.parametrize("change", ["state", "take", "names", "answers", "chunks"])
def test_what_cannot_have_left_a_server_is_refused(pocket: OpenedModel, change: str) -> None:
    left = pb.EvacuatedSession.FromString(RELEASES[0].read_bytes())
    saved = unpack(left.snapshot)
    match change:
        case "state":
            saved.session.state = pb.SESSION_STATE_READY
        case "take":
            saved.session.take = -1
        case "names":
            del left.pending_command_ids[:]
        case "answers":
            left.answered[0].receipt.stage = 77  # type: ignore[assignment]
        case "chunks":
            del left.chunks[1]
    with pytest.raises(InvalidRequest):
        arrived(left, saved, spec_of(pocket, saved.session))


def test_this_release_has_stored_its_own() -> None:
    assert all(version("longtake") in {path.stem for path in stored} for stored in (RELEASES, RESTYLED))


@pytest.mark.parametrize("path", RELEASES, ids=[path.stem for path in RELEASES])
def test_what_a_release_has_saved_opens_in_this_one(pocket: OpenedModel, path: Path) -> None:
    left = pb.EvacuatedSession.FromString(path.read_bytes())
    saved = unpack(left.snapshot)
    there = spec_of(pocket, saved.session)

    async def go_on() -> None:
        for resume in (restored(saved, there), arrived(left, saved, there)):
            async with at_work(pocket) as bench:
                session = await bench.open(there, resume=resume)
                assert (session.next_frame, session.prompt) == (saved.session.next_frame, NIGHT)
                if session.state == pb.SESSION_STATE_PAUSED:
                    await bench.denoiser.command(session.id, pb.Command(resume=pb.Resume()))
                await chunks(bench, session.id, session.next_frame + 12, session.next_frame)

    run(go_on())


@pytest.mark.parametrize("path", RESTYLED, ids=[path.stem for path in RESTYLED])
def test_a_restyled_session_that_a_release_has_saved_opens_in_this_one(pocket: OpenedModel, path: Path) -> None:
    saved = unpack(path.read_bytes())
    there = video_spec(pocket, saved.session.id)

    async def go_on() -> None:
        async with at_work(pocket) as bench:
            session = await bench.open(there, resume=restored(saved, there))
            assert (session.next_frame, session.prompt) == (saved.session.next_frame, NIGHT) == (25, NIGHT)
            await bench.denoiser.command(session.id, pb.Command(id="resume", resume=pb.Resume()))
            async with controlled(bench, session.id) as controller:
                await controller.push(range(70, 74))
                await settled(lambda: controller.frames >= 4)
                assert controller.pictures[:4] == [1070, 1071, 1072, 1073]

    run(go_on())


def test_a_server_says_which_one_it_is(pocket: OpenedModel, tmp_path: Path) -> None:
    async def ask() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            first, second = [await manager.server_info(ANNA) for manager in there.managers]
            assert (first, first.model, first.free_slots) == (second, "pocket", 4)
            assert list(first.snapshot_formats) == ["longtks1"]
            await started(there.managers[0])
            await asyncio.sleep(1.0)
            assert (await there.managers[0].server_info(Caller("berta"))).free_slots == 3

    run(ask())
