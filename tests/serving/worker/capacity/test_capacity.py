from __future__ import annotations

from dataclasses import replace

import pytest

from engines.config.presets import preset
from engines.config.video_stream import LOOPS, as_run
from serving.errors import SlotsFull
from serving.session.pacing import Pace
from serving.worker.capacity.capacity import Capacity, Load

POCKET = preset("pocket")


def capacity(seconds: float = 0.25, **options: object) -> Capacity:
    found = Capacity(POCKET.transformer, POCKET.stream, **options)  # type: ignore[arg-type]
    found.denoising.measured(POCKET.stream, seconds)
    return found


def load(fps: int = 16, height: int = 96, width: int = 160, ahead: int = 1) -> Load:
    return Load(replace(POCKET.stream, height=height, width=width), Pace(fps, ahead))


def refusal(found: Capacity, newcomer: Load, *present: Load) -> str:
    with pytest.raises(SlotsFull) as refused:
        found.require_time(newcomer, present, 0.0)
    return str(refused.value)


def test_the_session_that_cannot_be_served_in_time_is_told_what_would_fit() -> None:
    found = capacity()
    found.require_time(load(), [load()], 0.0)
    words = refusal(found, load(), load(), load())
    assert words.startswith("this replica has no time for 16 frames/s of 96x160: to generate a block takes 0.25 s")
    assert words.endswith("11 frames/s of 96x160 or 16 frames/s of 80x128 would fit")


def test_what_is_proposed_is_let_in() -> None:
    found = capacity()
    found.require_time(load(11), [load(), load()], 0.0)
    found.require_time(load(16, 80, 128), [load(), load()], 0.0)


def test_a_large_unpaced_picture_is_not_let_in_beside_a_paced_one() -> None:
    words = refusal(capacity(), load(0, 720, 1280), load())
    assert "for an unpaced session of 720x1280: a block of another one would wait" in words
    assert words.endswith("an unpaced session of 112x192 would fit")


def test_beside_a_large_unpaced_picture_nobody_is_let_in() -> None:
    words = refusal(capacity(), load(), load(0, 720, 1280))
    assert words.endswith("nothing fits until one of them ends")


def test_only_sizes_that_are_served_are_proposed() -> None:
    found = capacity(sizes=((96, 160), (64, 96), (48, 80)))
    assert refusal(found, load(), load(), load()).endswith("or 16 frames/s of 64x96 would fit")


@pytest.mark.parametrize(("together", "needs"), [(False, (0.2, 0.1)), (True, (0.3, 0.0))])
def test_on_one_device_decoding_takes_time_from_denoising(together: bool, needs: tuple[float, float]) -> None:
    found = capacity(0.2, together=together)
    found.delivering.measured(POCKET.stream, 0.1)
    demand = found.demand(load(), 0.0)
    assert (demand.denoise_s, demand.deliver_s) == pytest.approx(needs)


def test_a_block_that_opens_a_video_takes_as_much_longer_as_it_has_frames() -> None:
    found, video = capacity(), POCKET.video
    assert video is not None
    found.denoising.measured(as_run(video, "plain"), 0.2)
    found.denoising.measured(as_run(video, "batch"), 0.1)
    assert video.first_block_frames == 2 * video.block_frames
    assert [found.opening_s(replace(video, loop=loop), 0.0) for loop in LOOPS] == [0.4, 0.4]


def test_blocks_that_are_made_decide_who_is_let_in_next() -> None:
    found = capacity(3.0)
    for block in range(8):
        found.denoising.observe(POCKET.stream, 0.2, float(block))
    found.require_time(load(), [load()], 8.0)


@pytest.mark.parametrize(("present", "more"), [((), 2), ((load(),), 1), ((load(), load()), 0), ((load(4),), 2)])
def test_it_is_known_how_many_more_there_is_time_for(present: tuple[Load, ...], more: int) -> None:
    found = capacity()
    assert found.more(present, 8, 0.0) == more
    there = list(present)
    for _ in range(more):
        found.require_time(load(), there, 0.0)
        there.append(load())
    assert "no time" in refusal(found, load(), *there)


def test_there_is_time_for_no_more_than_have_slots() -> None:
    assert capacity(0.001).more([], 3, 0.0) == 3
    assert capacity(0.001).more([load()], 0, 0.0) == 0
