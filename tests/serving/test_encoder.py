from __future__ import annotations

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.annexb import PPS, SPS, split_units, unit_type
from serving.chunk import Chunk
from serving.encoder import ChunkEncoder
from serving.errors import FilmError

Pictures = NDArray[np.uint8]


@pytest.fixture
def blocks() -> list[Pictures]:
    """A block of 9 and two of 12 pictures: a bright square moves over a ramp."""
    pictures = np.repeat(np.linspace(0, 120, 64)[None, None, :, None], 33, axis=0)
    pictures = np.broadcast_to(pictures, (33, 48, 64, 3)).astype(np.uint8)
    for number in range(33):
        pictures[number, 10:20, number : number + 10] = 250
    return np.split(pictures, [9, 21])


@pytest.fixture
def chunks(blocks: list[Pictures]) -> list[Chunk]:
    encoder = ChunkEncoder(48, 64)
    return [encoder.encode(block, frame, blocks[block]) for block, frame in enumerate((0, 9, 21))]


def decoded(*chunks: Chunk) -> Pictures:
    decoder = av.CodecContext.create("h264", "r")
    units = [unit.data for chunk in chunks for unit in chunk.units]
    frames = [frame for data in units for frame in decoder.decode(av.Packet(data))] + decoder.decode(None)
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def test_a_chunk_has_one_unit_for_each_picture(chunks: list[Chunk]) -> None:
    assert [(chunk.block, chunk.first_frame, chunk.end_frame) for chunk in chunks] == [
        (0, 0, 9),
        (1, 9, 21),
        (2, 21, 33),
    ]


def test_only_the_first_unit_is_a_key_and_carries_its_parameter_sets(chunks: list[Chunk]) -> None:
    for chunk in chunks:
        assert [unit.key for unit in chunk.units] == [True] + [False] * (len(chunk.units) - 1)
        assert {SPS, PPS} < {unit_type(unit) for unit in split_units(chunk.units[0].data)}


def test_chunks_show_what_was_put_in(chunks: list[Chunk], blocks: list[Pictures]) -> None:
    shown, expected = decoded(*chunks).astype(float), np.concatenate(blocks)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 2


def test_decoding_can_begin_at_any_chunk(chunks: list[Chunk]) -> None:
    assert np.array_equal(decoded(*chunks)[21:], decoded(chunks[2]))


def test_the_bytes_of_a_chunk_depend_on_its_pictures_alone(chunks: list[Chunk], blocks: list[Pictures]) -> None:
    assert ChunkEncoder(48, 64).encode(7, 500, blocks[2]).units == chunks[2].units


def test_a_change_of_scene_within_a_chunk_makes_no_key() -> None:
    pictures = np.random.default_rng(0).integers(255, size=(12, 48, 64, 3), dtype=np.uint8)
    pictures[6:] //= 8
    assert sum(unit.key for unit in ChunkEncoder(48, 64).encode(0, 0, pictures).units) == 1


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[3, 48, 80, 3\], not uint8 \[frames, 48, 64, 3\]"):
        ChunkEncoder(48, 64).encode(0, 0, np.zeros((3, 48, 80, 3), dtype=np.uint8))


def test_an_encoder_that_is_not_here_is_named_with_the_remedy() -> None:
    with pytest.raises(FilmError, match=r"h264_nvenc does not open for 15x15 here: .* needs an NVIDIA GPU"):
        ChunkEncoder(15, 15, "h264_nvenc")
