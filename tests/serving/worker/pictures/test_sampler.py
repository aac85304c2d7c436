from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.worker.pictures.sampler import GAP_US, PictureSampler


def shown(times_us: Sequence[float]) -> list[int]:
    sampler = PictureSampler()
    return [sampler.frames_of(round(time)) for time in times_us]


def regular(rate: float, pictures: int) -> list[float]:
    return [number * 1e6 / rate for number in range(pictures)]


def test_of_sixteen_pictures_a_second_each_is_shown_once() -> None:
    assert shown(regular(16, 200)) == [1] * 200


@pytest.mark.parametrize("rate", [24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60.0])
def test_of_more_pictures_sixteen_a_second_are_shown(rate: float) -> None:
    frames = shown(regular(rate, round(60 * rate)))
    assert set(frames) == {0, 1}
    assert abs(sum(frames) - 60 * 16) <= 1


@pytest.mark.parametrize("rate", [5.0, 10.0, 12.0])
def test_of_fewer_pictures_some_are_shown_for_several_frames(rate: float) -> None:
    frames = shown(regular(rate, round(60 * rate)))
    assert min(frames) >= 1
    assert abs(sum(frames) - 60 * 16) <= 16 / rate


def test_a_camera_that_trembles_keeps_its_pictures() -> None:
    late = [62_500 * number + 9_000 * (number % 3) for number in range(300)]
    assert shown(late) == [1] * 300


def test_nothing_fills_a_silence() -> None:
    assert shown([0, 62_500, 62_500 + GAP_US + 1, 62_500 + GAP_US + 62_501]) == [1, 1, 1, 1]


def test_a_clock_that_goes_back_begins_anew() -> None:
    assert shown([10_000_000, 10_062_500, 0, 62_500]) == [1, 1, 1, 1]


@given(st.lists(st.integers(0, GAP_US), min_size=1, max_size=60))
def test_a_frame_is_never_made_of_a_picture_that_is_to_come(steps_us: list[int]) -> None:
    times = [0, *accumulate(steps_us)]
    frames = shown([float(time) for time in times])
    made = 0
    for time, count in zip(times, frames, strict=True):
        made += count
        assert (made - 1) * 62_500 <= time + 31_250 < made * 62_500


@given(st.lists(st.integers(0, 3 * GAP_US), max_size=60))
def test_it_is_known_before_whether_a_picture_would_be_shown(times_us: list[int]) -> None:
    sampler = PictureSampler()
    for time_us in times_us:
        would_be = sampler.shows(time_us)
        assert would_be == (sampler.frames_of(time_us) > 0)
