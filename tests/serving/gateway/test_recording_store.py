from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.errors import FilmError, InvalidRequest, LimitReached, SessionNotFound, WrongState
from serving.gateway.recording_store import PIECE_BYTES, Recording, RecordingStore, RecordingWriter
from tests.serving.footage import HEIGHT, WIDTH, chunks, decoded, played


@pytest.fixture
def recordings(tmp_path: Path) -> RecordingStore:
    return RecordingStore(tmp_path / "films" / "of sessions")


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
    assert made == Recording("abc-1", "abc", 60, 33, recordings.path("abc-1").stat().st_size, finished=True)
    assert recordings.find("abc-1") == made


def test_another_recording_of_a_session_has_another_name(recordings: RecordingStore) -> None:
    begun(recordings).finish()
    unfinished = begun(recordings)
    assert [begun(recordings).finish().name, unfinished.finish().name] == ["abc-3", "abc-2"]
    assert set(recordings.names()) == {"abc-1", "abc-2", "abc-3"}


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


def test_what_a_killed_writer_leaves_can_be_salvaged(recordings: RecordingStore) -> None:
    program = (
        "import os, sys; from pathlib import Path; from serving.gateway.recording_store import RecordingStore\n"
        "from tests.serving.gateway.test_recording_store import begun\n"
        "begun(RecordingStore(Path(sys.argv[1])), skip=5)\n"
        "os._exit(1)"
    )
    folder = recordings.path(begun(recordings, "other").finish().name).parent
    subprocess.run([sys.executable, "-c", program, str(folder)], check=False)
    recordings.salvage("abc-1")
    found = recordings.find("abc-1")
    assert replace(found, nbytes=0) == Recording("abc-1", "abc", 60, 21, finished=True)
    assert np.array_equal(played(str(recordings.path("abc-1"))).pictures, decoded(*chunks()[:2]))


def test_a_full_disk_ends_a_recording_and_spares_what_is_written(recordings: RecordingStore) -> None:
    program = (
        "import resource, signal, sys; from pathlib import Path; from serving.errors import LimitReached\n"
        "from serving.gateway.recording_store import RecordingStore\n"
        "from tests.serving.gateway.test_recording_store import begun\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "writer = begun(RecordingStore(Path(sys.argv[1])))\n"
        "try: writer.finish()\n"
        "except LimitReached as error: sys.exit(f'{error}, {writer.finish().frames} frames')"
    )
    folder = recordings.path(begun(recordings, "other").finish().name).parent
    ended = subprocess.run(
        [sys.executable, "-c", program, str(folder)], check=False, capture_output=True, text=True
    )
    assert ended.stderr == "the server cannot write abc-1.mp4.part: File too large, 9 frames\n"
    assert np.array_equal(played(str(recordings.path("abc-1"))).pictures, decoded(chunks()[0]))


def test_a_folder_that_has_gone_is_named(recordings: RecordingStore) -> None:
    folder = recordings.path(begun(recordings).finish().name).parent
    recordings.path("abc-1").unlink()
    folder.rmdir()
    with pytest.raises(LimitReached, match=r"cannot write abc-1\.mp4\.part: No such file or directory"):
        begun(recordings)


def test_a_file_cannot_be_the_folder(tmp_path: Path) -> None:
    tmp_path.joinpath("file").touch()
    with pytest.raises(FilmError, match="file cannot be written: File exists"):
        RecordingStore(tmp_path / "file")
