"""The numbers of a session's events, which go on counting wherever it is."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.stream_cursor import StreamCursor, Verdict
from serving.weights.loader import OpenedModel
from tests.serving.gateway.ownership.local_cluster import Cluster, cluster, until
from tests.serving.gateway.ownership.scenes import ANNA, END, Viewer, cue, run, started
from tests.serving.worker.bench import NIGHT


def follow_each_other(events: list[pb.Event]) -> bool:
    """Whether no event is missing between two, as their numbers tell, and no number was given twice."""
    cursor = StreamCursor(0)
    told = [event.seq for event in events if event.WhichOneof("event") in ("chunk", "receipt", "applied")]
    holes = [event for event in events if cursor.judge(event) is Verdict.HOLE]
    return not holes and all(later > earlier for earlier, later in pairwise(told))


def behind_the_move(events: list[pb.Event]) -> tuple[int, int]:
    """The numbers of the last event before a session went on elsewhere, and of its state there."""
    moved = next(at for at, event in enumerate(events) if event.HasField("resumed"))
    return events[moved - 1].seq, events[moved + 1].seq


async def die_and_count_on(there: Cluster, session: pb.Session, viewer: Viewer) -> None:
    """The session's replica dies, and its events are numbered on elsewhere."""
    await there.kill(there.owner_of(session.id))
    await viewer.sees(END)
    before, after = behind_the_move(viewer.events)
    assert before == after
    assert follow_each_other(viewer.events)


def test_numbers_go_on_counting_where_a_replica_dies(pocket: OpenedModel, tmp_path: Path) -> None:
    async def die() -> None:
        async with cluster(pocket, tmp_path) as there:
            session = await started(there.managers[0])
            viewer = Viewer(there.managers[0], session)
            await viewer.sees(45)
            await die_and_count_on(there, session, viewer)

    run(die())


def test_a_receipt_has_its_number_though_a_replica_dies_that_has_only_just_sent_it(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def die() -> None:
        async with cluster(pocket, tmp_path) as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer = Viewer(manager, session)
            await viewer.sees(33)
            await manager.command(session.id, pb.Command(id="night", schedule_prompt=cue(NIGHT, 1000)), ANNA)
            await until(lambda: any(event.receipt.command_id == "night" for event in viewer.events))
            await die_and_count_on(there, session, viewer)

    run(die())


def first_frames(viewer: Viewer, take: int) -> list[int]:
    """Of the chunks of a take, as a viewer was sent them."""
    return [event.chunk.first_frame for event in viewer.events if event.HasField("chunk") and event.take == take]


def test_a_viewer_sees_a_new_take_from_its_beginning_though_its_stream_was_lost_as_that_began(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def die() -> None:
        async with cluster(pocket, tmp_path) as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer = Viewer(manager, session)
            await viewer.sees(45)
            owner = there.owner_of(session.id)
            there.links[owner].lost_methods = {"subscribe"}
            # What it waits for already is still heard.
            heard = len(viewer.events)
            await until(lambda: len(viewer.events) > heard)
            for command in (pb.Command(reset=pb.Reset()), pb.Command(schedule_prompt=cue(NIGHT, 0))):
                await manager.command(session.id, command, ANNA)
            await there.kill(owner)
            await manager.command(session.id, pb.Command(start=pb.Start()), ANNA)
            await until(lambda: len(first_frames(viewer, take=1)) > 1)
            assert first_frames(viewer, take=1)[:2] == [0, 9]

    run(die())
