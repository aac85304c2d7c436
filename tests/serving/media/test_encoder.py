from __future__ import annotations

import numpy as np
import pytest

from serving.errors import FilmError
from serving.media.encoder import ChunkEncoder, EncoderChoice, chosen, opens
from serving.media.h264 import PPS, SPS, split_units, unit_type
from tests.serving.footage import HEIGHT, WIDTH, blocks, chunks, decoded


def test_a_chunk_has_one_unit_for_each_picture() -> None:
    bounds = [(chunk.block, chunk.first_frame, chunk.end_frame) for chunk in chunks()]
    assert bounds == [(0, 0, 9), (1, 9, 21), (2, 21, 33)]


def test_only_the_first_unit_is_a_key_and_carries_its_parameter_sets() -> None:
    for chunk in chunks():
        assert [unit.key for unit in chunk.units] == [True] + [False] * (len(chunk.units) - 1)
        assert {SPS, PPS} < {unit_type(unit) for unit in split_units(chunk.units[0].data)}


def test_chunks_show_what_was_put_in() -> None:
    shown, expected = decoded(*chunks()).astype(float), np.concatenate(blocks())
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 2


def test_decoding_can_begin_at_any_chunk() -> None:
    made = chunks()
    assert np.array_equal(decoded(*made)[21:], decoded(made[2]))


def test_the_bytes_of_a_chunk_depend_on_its_pictures_alone() -> None:
    alone = ChunkEncoder(HEIGHT, WIDTH).encode(7, 500, blocks()[2])
    assert alone.units == chunks()[2].units


def test_a_change_of_scene_within_a_chunk_makes_no_key() -> None:
    pictures = np.random.default_rng(0).integers(255, size=(12, HEIGHT, WIDTH, 3), dtype=np.uint8)
    pictures[6:] //= 8
    assert sum(unit.key for unit in ChunkEncoder(HEIGHT, WIDTH).encode(0, 0, pictures).units) == 1


@pytest.mark.parametrize("shape", [(3, 48, 80, 3), (0, 48, 64, 3), (48, 64, 3)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"pictures are uint8 \[.*\], not uint8 \[frames, 48, 64, 3\]"):
        ChunkEncoder(48, 64).encode(0, 0, np.zeros(shape, dtype=np.uint8))


def test_an_encoder_that_is_not_here_is_named_with_the_remedy() -> None:
    with pytest.raises(FilmError, match=r"h264_nvenc does not open for 15x15 here: .* needs an NVIDIA GPU"):
        ChunkEncoder(15, 15, "h264_nvenc")


@pytest.mark.parametrize("asked", ["libx264", "h264_nvenc"])
def test_an_encoder_that_is_asked_for_is_taken(asked: EncoderChoice) -> None:
    assert chosen(asked, graphics=False) == asked


def test_left_to_itself_a_machine_takes_the_encoder_that_it_has() -> None:
    assert chosen("auto", graphics=False) == "libx264"
    assert chosen("auto", graphics=True) == ("h264_nvenc" if opens("h264_nvenc") else "libx264")
    assert opens("libx264")
