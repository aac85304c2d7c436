"""Ordinary MP4s of fragments, where the disk takes them and where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serving.media.fragment_file import FragmentFile
from serving.media.ordinary_mp4 import make_ordinary
from tests.serving.footage import HEIGHT, WIDTH, chunks, decoded, played
from tests.support.open_files import open_files

FULL = Path("/dev/full")


@pytest.fixture
def fragments(tmp_path: Path) -> Iterator[FragmentFile]:
    file = FragmentFile.create(tmp_path / "film.mp4.part")
    assert file is not None
    for chunk in chunks():
        file.append(chunk, HEIGHT, WIDTH)
    yield file
    file.close()


def test_the_index_comes_first_and_every_frame_is_there(fragments: FragmentFile, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    make_ordinary(fragments.path, film, fragments.frames, {"comment": "noon"})
    data = film.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert np.array_equal(played(str(film)).pictures, decoded(*chunks()))


def test_a_film_that_a_full_disk_refuses_is_not_left_open(fragments: FragmentFile) -> None:
    before = open_files()
    for _ in range(3):
        with pytest.raises(OSError, match="No space left on device"):
            make_ordinary(fragments.path, FULL, fragments.frames, {})
    assert open_files() == before
