from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from serving.errors import FilmError
from serving.media.mp4_writer import Mp4, cut_to_whole
from tests.serving.footage import HEIGHT, WIDTH, chunks, decoded, played


def written(path: Path, skip: int = 0) -> Path:
    made = chunks(skip)
    file = Mp4(path, HEIGHT, WIDTH, made[0].first_frame, {})
    for chunk in made:
        file.append(chunk)
    file.close()
    return path


def test_a_file_shows_the_pictures_of_its_chunks_bit_for_bit(tmp_path: Path) -> None:
    shown = played(str(written(tmp_path / "film.mp4")))
    assert np.array_equal(shown.pictures, decoded(*chunks()))


def test_a_file_that_begins_in_mid_stream_begins_at_nought(tmp_path: Path) -> None:
    assert played(str(written(tmp_path / "film.mp4", skip=1000))).times == list(range(33))


def test_a_file_can_be_sought_to_each_chunk(tmp_path: Path) -> None:
    with av.open(str(written(tmp_path / "film.mp4")), "r") as container:
        video = container.streams.video[0]
        assert video.average_rate == 16
        assert [number for number, packet in enumerate(container.demux(video)) if packet.is_keyframe] == [0, 9, 21]


def test_the_same_chunks_make_the_same_file(tmp_path: Path) -> None:
    first, second = written(tmp_path / "one.mp4"), written(tmp_path / "two.mp4", skip=7)
    assert first.read_bytes() == second.read_bytes()


def test_a_chunk_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    made = chunks()
    file = Mp4(tmp_path / "film.mp4", HEIGHT, WIDTH, 0, {})
    file.append(made[0])
    with pytest.raises(FilmError, match=r"film\.mp4 goes on with frame 9; the chunk begins at 21"):
        file.append(made[2])
    file.append(made[1])
    file.close()
    assert played(str(tmp_path / "film.mp4")).times == list(range(21))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FilmError, match=r"nowhere/film\.mp4 cannot be written: No such file or directory"):
        Mp4(tmp_path / "nowhere" / "film.mp4", HEIGHT, WIDTH, 0, {})


def test_what_a_dying_writer_leaves_is_cut_behind_its_last_whole_fragment(tmp_path: Path) -> None:
    path, made = tmp_path / "film.mp4", chunks()
    file = Mp4(path, HEIGHT, WIDTH, 0, {})
    for chunk in made:
        file.append(chunk)
    torn = path.read_bytes()[:-100]
    file.abandon()
    path.write_bytes(torn)
    cut_to_whole(path)
    assert np.array_equal(played(str(path)).pictures, decoded(made[0]))
