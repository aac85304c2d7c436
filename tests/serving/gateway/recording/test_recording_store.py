from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from serving.errors import FilmError, InvalidRequest, LimitReached, SessionNotFound, WrongState
from serving.gateway.recording.recording_store import LEAST_BYTES, PIECE_BYTES, RecordingStore
from serving.gateway.recording.recording_writer import Recording, RecordingWriter
from serving.media.fmp4 import boxes
from serving.media.fragment_file import FragmentFile
from tests.serving.footage import HEIGHT, WIDTH, chunks, decoded, played


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "films" / "of sessions"


@pytest.fixture
def recordings(folder: Path) -> RecordingStore:
    return RecordingStore(folder)


def begun(recordings: RecordingStore, session: str = "abc", skip: int = 0) -> RecordingWriter:
    """A recording of three chunks that is not finished."""
    made = chunks(skip)
    writer = recordings.begin(session, HEIGHT, WIDTH, made[0].first_frame)
    for chunk in made:
        writer.append(chunk)
    return writer


def test_a_recording_shows_its_chunks_bit_for_bit_from_nought(recordings: RecordingStore) -> None:
    made = begun(recordings, skip=5).finish()
    shown = played(str(recordings.path(made.name)))
    assert shown.times == list(range(33))
    assert np.array_equal(shown.pictures, decoded(*chunks()))


def test_a_recording_says_what_it_is(recordings: RecordingStore) -> None:
    writer = begun(recordings, skip=5)
    assert writer.recording == Recording("abc-1", "abc", 60, 33)
    made = writer.finish()
    file = recordings.path("abc-1").stat()
    assert made == Recording("abc-1", "abc", 60, 33, file.st_size, file.st_mtime)
    assert recordings.find("abc-1") == made


def test_recordings_that_have_all_the_bytes_they_may_have_leave_no_room(recordings: RecordingStore) -> None:
    begun(recordings).finish()
    begun(recordings, "abd")
    recordings.require_room(2 * LEAST_BYTES + 1)
    with pytest.raises(LimitReached, match=f"take {2 * LEAST_BYTES} bytes .* delete some"):
        recordings.require_room(2 * LEAST_BYTES)


def test_a_recording_that_is_listed_again_is_not_opened_again(
    recordings: RecordingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = begun(recordings).finish()
    assert recordings.find(made.name) == made
    monkeypatch.setattr("av.open", None)
    assert recordings.find(made.name) == made


def test_who_asked_for_a_recording_is_not_in_the_finished_file(recordings: RecordingStore) -> None:
    writer = recordings.begin("abc", HEIGHT, WIDTH, 0, asked_by="ann 17")
    writer.append(chunks()[0])
    assert b"ann 17" not in recordings.path(writer.finish().name).read_bytes()


def test_another_recording_of_a_session_has_another_name(recordings: RecordingStore) -> None:
    begun(recordings).finish()
    unfinished = begun(recordings)
    assert [begun(recordings).finish().name, unfinished.finish().name] == ["abc-3", "abc-2"]
    assert {one.name for one in recordings.finished()} == {"abc-1", "abc-2", "abc-3"}


def test_a_recording_is_read_in_pieces(recordings: RecordingStore) -> None:
    name = begun(recordings).finish().name
    path = recordings.path(name)
    path.write_bytes(path.read_bytes() * 200)
    pieces = list(recordings.read(name))
    assert {len(piece) for piece in pieces[:-1]} == {PIECE_BYTES}
    assert b"".join(pieces) == path.read_bytes()


def test_a_recording_that_is_being_written_cannot_be_read(recordings: RecordingStore) -> None:
    writer = begun(recordings)
    with pytest.raises(WrongState, match="abc-1 is still being written; stop it first"):
        recordings.read("abc-1")
    writer.finish()


def test_a_recording_that_is_just_being_finished_is_not_missed(recordings: RecordingStore) -> None:
    for number in range(1, 21):
        writer = begun(recordings)
        finishing = threading.Thread(target=writer.finish)
        finishing.start()
        found = None
        while found is None:
            with contextlib.suppress(WrongState):
                found = recordings.path(f"abc-{number}")
        finishing.join()


def test_a_recording_without_a_frame_leaves_nothing(recordings: RecordingStore) -> None:
    assert not recordings.begin("abc", HEIGHT, WIDTH, 9).finish().finished
    with pytest.raises(SessionNotFound, match="there is no recording abc-1"):
        recordings.read("abc-1")


@pytest.mark.parametrize(
    "name", ["", "../secret", "a/b", "/etc/passwd", "a.mp4", "..", "a\n", "x" * 101, "ä", "a\0"]
)
def test_a_name_that_could_lead_elsewhere_is_refused(recordings: RecordingStore, name: str) -> None:
    with pytest.raises(InvalidRequest, match="is no name of a recording"):
        recordings.read(name)


def test_a_chunk_that_does_not_follow_is_refused_and_ends_nothing(recordings: RecordingStore) -> None:
    made = chunks()
    writer = recordings.begin("abc", HEIGHT, WIDTH, 0)
    with pytest.raises(FilmError, match="goes on with frame 0; the chunk begins at 9"):
        writer.append(made[1])
    writer.append(made[0])
    assert writer.finish().frames == 9


def test_a_recording_that_has_ended_goes_on_no_more(recordings: RecordingStore) -> None:
    writer = begun(recordings)
    assert writer.finish() == writer.finish() == writer.recording
    with pytest.raises(WrongState, match="abc-1 has ended; begin another"):
        writer.append(chunks()[0])


def test_what_is_no_recording_is_named(recordings: RecordingStore) -> None:
    recordings.path(begun(recordings).finish().name).write_text("no film")
    with pytest.raises(FilmError, match="is not a recording that Longtake made"):
        recordings.find("abc-1")


def in_another_process(folder: Path, program: str) -> str:
    """What a program says that has `store`, and `begun` of this file; it ends without cleaning up."""
    head = (
        "import os, resource, signal, sys; from pathlib import Path\n"
        "from serving.errors import LimitReached\n"
        "from serving.gateway.recording.recording_store import RecordingStore\n"
        "from tests.serving.gateway.recording.test_recording_store import begun, chunks\n"
        "store = RecordingStore(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", f"{head}{program}\nsys.stdout.flush(); os._exit(0)", str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_what_a_killed_writer_leaves_is_gone_on_with_where_it_ended(
    recordings: RecordingStore, folder: Path
) -> None:
    in_another_process(folder, "writer = store.begin('abc', 48, 64, 60, 3); writer.append(chunks(5)[0])")
    (writer,) = recordings.left_behind()
    assert (writer.recording, writer.facts.take) == (Recording("abc-1", "abc", 60, 9), 3)
    for chunk in chunks(5)[1:]:
        writer.append(chunk)
    assert writer.finish().frames == 33
    shown = played(str(recordings.path("abc-1")))
    assert shown.times == list(range(33))
    assert np.array_equal(shown.pictures, decoded(*chunks()))


@pytest.mark.parametrize("cut", [1, 100, 1500])
def test_a_chunk_that_is_not_all_there_is_cut_off(recordings: RecordingStore, folder: Path, cut: int) -> None:
    in_another_process(folder, "begun(store, skip=5)")
    part = folder / "abc-1.mp4.part"
    part.write_bytes(part.read_bytes()[:-cut])
    (writer,) = recordings.left_behind()
    assert writer.recording.frames in (9, 21)
    writer.append(chunks(5)[1 if writer.recording.frames == 9 else 2])
    writer.finish()
    assert len(played(str(recordings.path("abc-1"))).times) == writer.recording.frames


def test_a_recording_has_one_writer(recordings: RecordingStore, folder: Path) -> None:
    writer = begun(recordings)
    assert recordings.left_behind() == []
    assert in_another_process(folder, "print(store.left_behind())") == "[]\n"
    writer.release()
    assert len(recordings.left_behind()) == 1


def test_what_does_not_say_what_it_is_is_finished_as_it_is_or_removed(
    recordings: RecordingStore, folder: Path
) -> None:
    film = FragmentFile.create(folder / "old-1.mp4.part")
    assert film is not None
    for chunk in chunks():
        film.append(chunk, HEIGHT, WIDTH)
    film.close()
    (folder / "empty-1.mp4.part").touch()
    assert recordings.left_behind() == []
    assert [one.name for one in recordings.finished()] == ["old-1"]
    assert not list(folder.glob("*.part"))


def zeroed(part: Path, kind: bytes, which: int) -> None:
    """As a power cut leaves a file: its length is there, and what was written last is not."""
    with part.open("r+b") as file:
        box = [box for box in boxes(file) if box.kind == kind][which]
        file.seek(box.begin + 8)
        file.write(bytes(box.data_bytes))


@pytest.mark.parametrize(("which", "frames"), [(0, 0), (1, 9), (2, 21)])
def test_a_fragment_that_is_zeros_costs_what_is_behind_it_and_no_other_recording(
    recordings: RecordingStore, folder: Path, which: int, frames: int
) -> None:
    for session in ("bad", "good"):
        begun(recordings, session).release()
    zeroed(folder / "bad-1.mp4.part", b"moof", which)
    made = {writer.name: writer.finish().frames for writer in recordings.left_behind()}
    assert made == {"bad-1": frames, "good-1": 33}
    assert not frames or recordings.find("bad-1").frames == frames


def test_a_recording_of_which_no_video_can_be_read_is_left_as_it_is(
    recordings: RecordingStore, folder: Path
) -> None:
    begun(recordings).release()
    zeroed(folder / "abc-1.mp4.part", b"moov", 0)
    (writer,) = recordings.left_behind()
    assert writer.finish().frames == 33
    assert recordings.left_behind() == []


def test_what_cannot_be_opened_is_told_once_and_is_in_no_other_recordings_way(
    recordings: RecordingStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "a.mp4.part").mkdir()
    begun(recordings).release()
    (writer,) = recordings.left_behind()
    writer.finish()
    assert recordings.left_behind() == []
    assert [record.getMessage() for record in caplog.records] == ["recording not looked after"]


def test_a_full_disk_ends_a_recording_and_spares_what_is_written(recordings: RecordingStore, folder: Path) -> None:
    program = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "writer = store.begin('abc', 48, 64, 0)\n"
        "try:\n"
        "    for chunk in chunks(): writer.append(chunk)\n"
        "except LimitReached as error: print(f'{error}, {writer.finish().frames} frames')"
    )
    said = in_another_process(folder, program)
    assert said == "the server cannot write abc-1.mp4.part: File too large, 9 frames\n"
    assert np.array_equal(played(str(recordings.path("abc-1"))).pictures, decoded(chunks()[0]))
    assert recordings.find("abc-1").frames == 9


def test_without_room_for_a_second_copy_a_recording_stays_in_fragments(
    recordings: RecordingStore, folder: Path
) -> None:
    program = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "writer = begun(store, skip=5)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "print(writer.finish().finished)"
    )
    assert in_another_process(folder, program) == "True\n"
    found = recordings.find("abc-1")
    assert (found.session_id, found.first_frame, found.frames) == ("abc", 60, 33)
    assert np.array_equal(played(str(recordings.path("abc-1"))).pictures, decoded(*chunks()))
    assert not list(folder.glob("*.part")) + list(folder.glob("*.new"))


def test_a_refused_beginning_leaves_nothing(recordings: RecordingStore, folder: Path) -> None:
    recordings.begin("abc", HEIGHT, WIDTH, 0).discard()
    program = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30, 30))\n"
        "try: store.begin('abc', 48, 64, 0)\n"
        "except LimitReached as error: print(error)"
    )
    said = in_another_process(folder, program)
    assert said == "the server cannot write abc-1.mp4.part: File too large\n"
    assert list(folder.iterdir()) == []


def test_a_file_that_was_taken_away_is_missed_at_the_next_chunk(recordings: RecordingStore, folder: Path) -> None:
    writer = recordings.begin("abc", HEIGHT, WIDTH, 0)
    (folder / "abc-1.mp4.part").unlink()
    with pytest.raises(LimitReached, match=r"cannot write abc-1\.mp4\.part: it has gone"):
        writer.append(chunks()[0])
    with pytest.raises(LimitReached, match="it has gone"):
        writer.finish()


def test_a_finished_recording_has_its_index_in_front(recordings: RecordingStore) -> None:
    path = recordings.path(begun(recordings).finish().name)
    with path.open("rb") as file:
        kinds = [box.kind for box in boxes(file)]
    assert kinds.index(b"moov") < kinds.index(b"mdat")
    assert b"moof" not in kinds


def test_a_deleted_recording_is_not_there_any_more(recordings: RecordingStore) -> None:
    recordings.delete(begun(recordings).finish().name)
    for ask in (recordings.delete, recordings.find):
        with pytest.raises(SessionNotFound, match="there is no recording abc-1"):
            ask("abc-1")
    begun(recordings)
    with pytest.raises(WrongState, match="still being written"):
        recordings.delete("abc-1")


def test_a_folder_that_has_gone_is_made_again_for_the_next_recording(
    recordings: RecordingStore, folder: Path
) -> None:
    shutil.rmtree(folder.parent)
    assert not recordings.finished()
    assert not recordings.left_behind()
    assert begun(recordings).finish().frames == 33


def test_a_folder_that_cannot_be_made_again_is_named(recordings: RecordingStore, folder: Path) -> None:
    folder.rmdir()
    folder.touch()
    with pytest.raises(LimitReached, match="the server cannot write of sessions: File exists"):
        begun(recordings)


def test_a_file_cannot_be_the_folder(tmp_path: Path) -> None:
    tmp_path.joinpath("file").touch()
    with pytest.raises(FilmError, match="file cannot be written: File exists"):
        RecordingStore(tmp_path / "file")
