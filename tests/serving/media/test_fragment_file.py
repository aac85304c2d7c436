from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from serving.errors import FilmError
from serving.media.fragment_file import FragmentFile, Tag, cut_to_whole, read_tag
from tests.serving.footage import HEIGHT, WIDTH, chunks, decoded, played

TAG = Tag("of", '{"a ü": "b"}')


def begun(path: Path, tag: Tag | None = None, skip: int = 0) -> FragmentFile:
    file = FragmentFile.create(path, tag)
    assert file is not None
    for chunk in chunks(skip):
        file.append(chunk, HEIGHT, WIDTH)
    return file


def written(path: Path, tag: Tag | None = None, skip: int = 0) -> Path:
    begun(path, tag, skip).close()
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
    first, second = written(tmp_path / "one.mp4", TAG), written(tmp_path / "two.mp4", TAG)
    assert first.read_bytes() == second.read_bytes()


def test_players_and_writers_read_what_a_file_says_of_itself(tmp_path: Path) -> None:
    path = written(tmp_path / "film.mp4", TAG)
    with av.open(str(path)) as container:
        assert container.metadata[TAG.name] == TAG.text
    with path.open("rb") as file:
        assert read_tag(file, path, TAG.name) == TAG.text
        with pytest.raises(FilmError, match="does not say what it is: it has no tag 'off'"):
            read_tag(file, path, "off")


def test_a_file_is_gone_on_with_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    written(path, TAG)
    path.write_bytes(path.read_bytes()[:-100])
    file = FragmentFile.reopen(path, TAG.name)
    assert file is not None
    assert (file.tag, file.frames) == (TAG, 21)
    file.append(chunks()[2], HEIGHT, WIDTH)
    assert np.array_equal(played(str(path)).pictures, decoded(*chunks()))


def test_a_file_is_replaced_unless_somebody_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    first = begun(path)
    assert FragmentFile.overwrite(path) is None
    assert FragmentFile.create(path) is None
    first.close()
    second = FragmentFile.overwrite(path, TAG)
    assert second is not None
    second.append(chunks()[0], HEIGHT, WIDTH)
    assert played(str(path)).times == list(range(9))


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FragmentFile.overwrite(tmp_path / "nowhere" / "film.mp4")


def test_what_a_dying_writer_leaves_is_cut_behind_its_last_whole_fragment(tmp_path: Path) -> None:
    path = written(tmp_path / "film.mp4")
    path.write_bytes(path.read_bytes()[:-100])
    cut_to_whole(path)
    assert np.array_equal(played(str(path)).pictures, decoded(*chunks()[:2]))
