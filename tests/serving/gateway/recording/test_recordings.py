"""Recordings of real denoisers' sessions, whose managers come and go."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from serving.config import Limits
from serving.errors import LimitReached, SessionNotFound, WrongState
from serving.gateway.recording.recording_store import RecordingStore
from serving.gateway.recording.recording_writer import RecordingWriter
from serving.gateway.session_service import SessionService
from serving.media.chunk import RecentChunks
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.weights.loader import OpenedModel
from tests.serving.footage import HEIGHT, WIDTH, chunks, played
from tests.serving.gateway.ownership.local_cluster import Cluster, cluster, until
from tests.serving.gateway.ownership.scenes import ANNA, Viewer, run, started


def two_managers(pocket: OpenedModel, folder: Path) -> AbstractAsyncContextManager[Cluster]:
    return cluster(pocket, folder, replicas="a", managers=2)


def start_of(session: pb.Session, command: str = "") -> pb.StartRecordingRequest:
    return pb.StartRecordingRequest(session_id=session.id, client_id="anna", command_id=command)


def stop_of(session: pb.Session, command: str = "") -> pb.StopRecordingRequest:
    return pb.StopRecordingRequest(session_id=session.id, client_id="anna", command_id=command)


async def recorded(manager: SessionService) -> list[pb.Recording]:
    return list((await manager.list_recordings(pb.ListRecordingsRequest(), ANNA)).recordings)


async def leave(manager: SessionService) -> None:
    """The manager's process ends, as far as others can tell."""
    await manager.stop()


def test_a_recording_goes_on_under_another_manager_and_lacks_no_frame(pocket: OpenedModel, tmp_path: Path) -> None:
    async def move() -> None:
        async with two_managers(pocket, tmp_path) as there:
            first, second = there.managers
            session = await started(first)
            begun = await first.start_recording(start_of(session), ANNA)
            viewer = Viewer(second, session)
            await viewer.sees(45)
            await leave(first)
            await viewer.sees(105)
            made = await second.stop_recording(stop_of(session), ANNA)
            assert (made.name, made.first_frame, made.finished) == (begun.name, 0, True)
            assert made.frames >= 105
            assert played(str(tmp_path / f"{made.name}.mp4")).times == list(range(made.frames))

    run(move())


def test_who_has_all_the_recordings_that_there_may_be_begins_no_other(pocket: OpenedModel, tmp_path: Path) -> None:
    async def begin() -> None:
        async with cluster(pocket, tmp_path, replicas="a", limits=Limits(recording_bytes=1)) as there:
            (manager,) = there.managers
            session = await started(manager)
            await manager.start_recording(start_of(session), ANNA)
            await Viewer(manager, session).sees(33)
            made = await manager.stop_recording(stop_of(session), ANNA)
            with pytest.raises(LimitReached, match="delete some"):
                await manager.start_recording(start_of(session), ANNA)
            await manager.delete_recording(made.name, ANNA)
            await manager.start_recording(start_of(session), ANNA)

    run(begin())


def test_a_recording_whose_session_has_ended_meanwhile_is_finished(pocket: OpenedModel, tmp_path: Path) -> None:
    async def end() -> None:
        async with two_managers(pocket, tmp_path) as there:
            first, second = there.managers
            session = await started(first)
            await first.start_recording(start_of(session), ANNA)
            viewer = Viewer(second, session)
            await viewer.sees(45)
            await leave(first)
            await second.delete(session.id, ANNA)
            await until(lambda: bool(list(tmp_path.glob("*.mp4"))))
            (made,) = await recorded(second)
            assert made.frames >= 33
            assert not list(tmp_path.glob("*.part"))

    run(end())


def test_what_a_server_left_is_finished_by_the_next_one(pocket: OpenedModel, tmp_path: Path) -> None:
    async def die() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            session = await started(there.managers[0])
            await there.managers[0].start_recording(start_of(session), ANNA)
            await Viewer(there.managers[0], session).sees(45)
        assert list(tmp_path.glob("*.part"))
        async with cluster(pocket, tmp_path, replicas="a") as there:
            await until(lambda: bool(list(tmp_path.glob("*.mp4"))))
            (made,) = await recorded(there.managers[0])
            assert made.frames >= 33

    run(die())


def test_what_callers_left_who_are_let_in_no_more_is_finished(pocket: OpenedModel, tmp_path: Path) -> None:
    folders = [tmp_path / "berta", tmp_path / "carl"]

    async def look() -> None:
        async with cluster(pocket, tmp_path, replicas="a"):
            for folder in folders:
                writer = RecordingStore(folder).begin("abc", HEIGHT, WIDTH, 0)
                writer.append(chunks()[0])
                writer.release()
            (tmp_path / "others").mkdir()
            (tmp_path / "others" / "film.mp4.part").write_text("somebody else's")
            await until(lambda: all((folder / "abc-1.mp4").exists() for folder in folders))
            assert (tmp_path / "others" / "film.mp4.part").exists()

    run(look())


def test_an_error_that_nobody_foresaw_is_logged_and_recordings_are_looked_after_all_the_same(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.gateway.recording.recordings.LOOK_EVERY_S", 0.01)
    failures = iter([ZeroDivisionError()])

    async def fail_once() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            looked_after = there.managers[0]._recordings
            left_behind = looked_after._left_behind

            def fails_once() -> list[RecordingWriter]:
                if (failure := next(failures, None)) is not None:
                    raise failure
                return left_behind()

            monkeypatch.setattr(looked_after, "_left_behind", fails_once)
            await until(lambda: "recordings not looked after" in caplog.messages)
            RecordingStore(tmp_path).begin("abc", HEIGHT, WIDTH, 0).release()
            await until(lambda: not list(tmp_path.iterdir()))

    run(fail_once())


def test_a_recording_that_misses_frames_is_finished_before_them_and_says_so(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.gateway.recording.recordings.LOOK_EVERY_S", 3600)

    async def miss() -> None:
        async with two_managers(pocket, tmp_path) as there:
            first, second = there.managers
            session = await started(first)
            viewer = Viewer(second, session)
            await first.start_recording(start_of(session), ANNA)
            await viewer.sees(21)
            await until(lambda: any(b"mdat" in part.read_bytes() for part in tmp_path.glob("*.part")))
            (copy,) = there.benches["a"].denoiser._copies.all
            await leave(first)
            copy.audience.kept = RecentChunks(most=2)
            await viewer.sees(105)
            (writer,) = second._recordings._left_behind()
            second._recordings._record(writer)
            await until(lambda: any(event.HasField("recording") for event in viewer.events))
            (ended,) = [event.recording for event in viewer.events if event.HasField("recording")]
            assert ended.finished
            assert "came too late" in ended.error.message
            with pytest.raises(LimitReached, match=f"its {ended.frames} frames can be read"):
                await second.stop_recording(stop_of(session), ANNA)
            assert [made.frames for made in await recorded(second)] == [ended.frames]

    run(miss())


def test_the_same_request_to_another_manager_has_the_same_answer(pocket: OpenedModel, tmp_path: Path) -> None:
    async def ask() -> None:
        async with two_managers(pocket, tmp_path) as there:
            first, second = there.managers
            session = await started(first)
            begun = await first.start_recording(start_of(session, "1"), ANNA)
            assert await second.start_recording(start_of(session, "1"), ANNA) == begun
            with pytest.raises(WrongState, match=f"being recorded as {begun.name}; stop that first"):
                await second.start_recording(start_of(session, "2"), ANNA)
            await Viewer(second, session).sees(45)
            made = await first.stop_recording(stop_of(session, "3"), ANNA)
            assert await second.stop_recording(stop_of(session, "3"), ANNA) == made
            with pytest.raises(WrongState, match="is not being recorded"):
                await second.stop_recording(stop_of(session, "4"), ANNA)
            assert [found.name for found in tmp_path.iterdir()] == [f"{begun.name}.mp4"]

    run(ask())


def test_a_refused_start_leaves_no_file_task_or_stream(pocket: OpenedModel, tmp_path: Path) -> None:
    async def refuse() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            manager = there.managers[0]
            session = await started(manager)
            before = await manager.get(session.id, ANNA)
            await manager.start_recording(start_of(session), ANNA)
            (copy,) = there.benches["a"].denoiser._copies.all
            await until(lambda: len(copy.audience.subscribers) == 1)
            tasks = len(manager._failover._background._tasks)
            for _ in range(10):
                with pytest.raises(WrongState):
                    # As two that ask at once: both have seen a session that is not recorded.
                    await manager._recordings.start(before, "", "")
            assert len(list(tmp_path.iterdir())) == 1
            assert len(manager._failover._background._tasks) == tasks
            assert len(copy.audience.subscribers) == 1

    run(refuse())


def test_a_folder_that_has_gone_is_an_error_and_made_again(pocket: OpenedModel, tmp_path: Path) -> None:
    folder = tmp_path / "recordings"

    async def go() -> None:
        async with cluster(pocket, folder, replicas="a") as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer = Viewer(manager, session)
            await manager.start_recording(start_of(session), ANNA)
            await viewer.sees(33)
            shutil.rmtree(folder)
            await until(lambda: any(event.HasField("recording") for event in viewer.events))
            (ended,) = [event.recording for event in viewer.events if event.HasField("recording")]
            assert not ended.finished
            assert ended.error.message.endswith("nothing is left of it: the server cannot write "
                                                f"{ended.name}.mp4.part: it has gone")  # fmt: skip
            with pytest.raises(LimitReached, match="nothing is left of it"):
                await manager.stop_recording(stop_of(session), ANNA)
            assert not (await manager.get(session.id, ANNA)).recording
            again = await manager.start_recording(start_of(session), ANNA)
            assert (folder / f"{again.name}.mp4.part").exists()

    run(go())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mounted, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_an_event_and_an_error_and_what_is_whole_can_be_read(
    pocket: OpenedModel, small_disk: Path
) -> None:
    async def fill() -> None:
        async with cluster(pocket, small_disk, replicas="a") as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer = Viewer(manager, session)
            await manager.start_recording(start_of(session), ANNA)
            await viewer.sees(33)
            fill_up(small_disk)
            await until(lambda: any(event.HasField("recording") for event in viewer.events))
            (ended,) = [event.recording for event in viewer.events if event.HasField("recording")]
            assert "No space left on device" in ended.error.message
            with pytest.raises(LimitReached, match="frames can be read"):
                await manager.stop_recording(stop_of(session), ANNA)
            (made,) = await recorded(manager)
            assert made.frames == ended.frames > 0
            assert len(played(str(small_disk / f"{made.name}.mp4")).times) == made.frames
            with pytest.raises(LimitReached, match="No space left on device"):
                await manager.start_recording(start_of(session), ANNA)
            assert {path.suffix for path in small_disk.iterdir()} == {".mp4", ".filling"}

    run(fill())


def fill_up(folder: Path) -> None:
    with (folder / "all.filling").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def test_recordings_are_listed_a_page_at_a_time_and_deleted(pocket: OpenedModel, tmp_path: Path) -> None:
    async def delete() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer, names = Viewer(manager, session), []
            for count in (33, 69, 105):
                names.append((await manager.start_recording(start_of(session), ANNA)).name)
                await viewer.sees(count)
                await manager.stop_recording(stop_of(session), ANNA)
            page = await manager.list_recordings(pb.ListRecordingsRequest(page_size=2), ANNA)
            assert [found.name for found in page.recordings] == names[:2]
            await manager.delete_recording(names[0], ANNA)
            rest = pb.ListRecordingsRequest(page_size=2, page_token=page.next_page_token)
            assert [found.name for found in (await manager.list_recordings(rest, ANNA)).recordings] == names[2:]
            assert [found.name for found in await recorded(manager)] == names[1:]
            with pytest.raises(SessionNotFound):
                await manager.delete_recording(names[0], ANNA)

    run(delete())


def test_a_reset_ends_a_recording_and_all_are_told(pocket: OpenedModel, tmp_path: Path) -> None:
    async def reset() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer = Viewer(manager, session)
            await manager.start_recording(start_of(session), ANNA)
            await viewer.sees(33)
            await manager.command(session.id, pb.Command(reset=pb.Reset()), ANNA)
            await until(lambda: any(event.HasField("recording") for event in viewer.events))
            assert not (await manager.get(session.id, ANNA)).recording
            made = await manager.stop_recording(stop_of(session), ANNA)
            assert made.finished
            assert made.frames >= 33

    run(reset())


def test_a_recording_that_is_stopped_before_anything_is_shown_is_none(pocket: OpenedModel, tmp_path: Path) -> None:
    async def stop() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            manager = there.managers[0]
            session = await started(manager)
            await manager.command(session.id, pb.Command(pause=pb.Pause()), ANNA)
            found = await manager.get(session.id, ANNA)
            while found.current_start_frame < found.next_frame:
                await asyncio.sleep(0.02)
                found = await manager.get(session.id, ANNA)
            await manager.start_recording(start_of(session), ANNA)
            made = await manager.stop_recording(stop_of(session), ANNA)
            assert (made.finished, made.frames) == (False, 0)
            assert list(tmp_path.iterdir()) == []

    run(stop())


def test_a_recording_that_is_as_long_as_one_may_be_ends_and_says_so(pocket: OpenedModel, tmp_path: Path) -> None:
    async def fill() -> None:
        async with cluster(pocket, tmp_path, replicas="a", limits=Limits(recording_frames=21)) as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer = Viewer(manager, session)
            await manager.start_recording(start_of(session), ANNA)
            await until(lambda: any(event.HasField("recording") for event in viewer.events))
            with pytest.raises(LimitReached, match=r"21 frames can be read: .* at most 21 go into one"):
                await manager.stop_recording(stop_of(session), ANNA)
            assert [made.frames for made in await recorded(manager)] == [21]

    run(fill())
