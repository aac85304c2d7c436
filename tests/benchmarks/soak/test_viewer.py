"""What a client of a soak makes of the films that it has recorded."""

from __future__ import annotations

from pathlib import Path

from benchmarks.soak.viewer import decodable_frames
from serving.media.film_file import FilmFile
from tests.serving.footage import HEIGHT, WIDTH, chunks


def test_the_frames_of_a_film_are_those_that_can_be_decoded(tmp_path: Path) -> None:
    with FilmFile(tmp_path / "film.mp4", HEIGHT, WIDTH) as film:
        for chunk in chunks():
            film.append(chunk)
    data = (tmp_path / "film.mp4").read_bytes()
    assert decodable_frames(data) == 33
    assert decodable_frames(data[:-500]) < 33
    assert decodable_frames(data[:100]) == 0
