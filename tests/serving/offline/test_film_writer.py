from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from serving.errors import FilmError
from serving.media.encoder import ChunkEncoder
from serving.media.film_file import Made
from serving.offline.film_writer import Film, read_facts
from tests.serving.footage import MadeOf, decoded, played


@pytest.fixture
def chunks() -> list[Tensor]:
    """A block of 9 and two of 12 pictures: a bright square moves over a ramp."""
    pictures = torch.linspace(0, 120, 64).expand(33, 48, 64).unsqueeze(-1).repeat(1, 1, 1, 3).to(torch.uint8)
    for number in range(33):
        pictures[number, 10:20, number : number + 10] = 250
    return list(pictures.split([9, 12, 12]))


@pytest.fixture
def film(tmp_path: Path, chunks: list[Tensor]) -> Path:
    with Film(tmp_path / "film.mp4", 48, 64) as film:
        for chunk in chunks:
            film.append(chunk)
    return tmp_path / "film.mp4"


def test_a_film_has_every_frame_at_sixteen_a_second(film: Path) -> None:
    with av.open(str(film)) as container:
        video = container.streams.video[0]
        times = [frame.time for frame in container.decode(video)]
    assert video.average_rate == 16
    assert times == [number / 16 for number in range(33)]


def test_a_film_shows_what_was_put_in(film: Path, chunks: list[Tensor]) -> None:
    with av.open(str(film)) as container:
        shown = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert (torch.stack(shown).float() - torch.cat(chunks).float()).abs().mean() < 4


def test_a_film_is_what_a_viewer_of_its_chunks_sees(film: Path, chunks: list[Tensor]) -> None:
    encoder = ChunkEncoder(48, 64)
    sent = decoded(*(encoder.encode(block, 0, pictures.numpy()) for block, pictures in enumerate(chunks)))
    assert np.array_equal(played(str(film)).pictures, sent)


def test_every_chunk_begins_with_its_only_key_frame(film: Path) -> None:
    with av.open(str(film)) as container:
        keys = [number for number, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    assert keys == [0, 9, 21]


def test_the_facts_are_in_the_film(tmp_path: Path, chunks: list[Tensor]) -> None:
    facts = MadeOf("Überflug" * 500)
    with Film(tmp_path / "film.mp4", 48, 64, facts) as film:
        film.append(chunks[0])
    assert json.loads(read_facts(tmp_path / "film.mp4")) == facts.document(Made(9, complete=False))


def test_a_film_of_somebody_elses_has_no_facts(film: Path, tmp_path: Path) -> None:
    with pytest.raises(FilmError, match="has no facts in it"):
        read_facts(film)
    tmp_path.joinpath("text.mp4").write_text("no film")
    with pytest.raises(FilmError, match=r"text\.mp4 is not a film"):
        read_facts(tmp_path / "text.mp4")


def test_a_film_without_a_picture_leaves_nothing_behind(tmp_path: Path) -> None:
    with Film(tmp_path / "film.mp4", 48, 64):
        pass
    assert not list(tmp_path.iterdir())
