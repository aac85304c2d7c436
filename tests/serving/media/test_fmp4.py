from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from serving.errors import FilmError
from serving.media.encoder import ChunkEncoder
from serving.media.fmp4 import Fragments
from tests.serving.footage import HEIGHT, WIDTH, chunks, decoded, played


@pytest.mark.parametrize("first", [0, 1, 2])
def test_any_suffix_of_the_segments_shows_exactly_its_frames_at_their_times(first: int) -> None:
    made = chunks()
    fragments = Fragments(made[0], HEIGHT, WIDTH)
    shown = played(io.BytesIO(fragments.init + b"".join(map(fragments.segment, made[first:]))))
    assert shown.times == list(range(made[first].first_frame, 33))
    assert np.array_equal(shown.pictures, decoded(*made[first:]))


def test_a_gap_moves_no_frame() -> None:
    made = chunks()
    fragments = Fragments(made[0], HEIGHT, WIDTH)
    shown = played(io.BytesIO(fragments.init + fragments.segment(made[0]) + fragments.segment(made[2])))
    assert shown.times == [*range(9), *range(21, 33)]


def test_times_are_exact_after_a_year() -> None:
    year = 16 * 3600 * 24 * 365
    late = replace(chunks()[0], first_frame=year)
    fragments = Fragments(late, HEIGHT, WIDTH)
    assert played(io.BytesIO(fragments.init + fragments.segment(late))).times == list(range(year, year + 9))


def test_the_codec_is_named_as_browsers_want_it() -> None:
    assert Fragments(chunks()[0], HEIGHT, WIDTH).codec == "avc1.64000a"


def test_the_chunk_of_another_encoder_needs_another_beginning() -> None:
    fragments = Fragments(chunks()[0], HEIGHT, WIDTH)
    other = ChunkEncoder(32, 32).encode(0, 0, np.zeros((9, 32, 32, 3), dtype=np.uint8))
    assert not fragments.fits(other)
    with pytest.raises(FilmError, match="frame 0 was made by another encoder"):
        fragments.segment(other)


def test_a_chunk_without_parameter_sets_is_refused() -> None:
    chunk = chunks()[0]
    with pytest.raises(FilmError, match="does not begin with parameter sets"):
        Fragments(replace(chunk, units=chunk.units[1:]), HEIGHT, WIDTH)
