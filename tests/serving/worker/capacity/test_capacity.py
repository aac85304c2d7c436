from __future__ import annotations

from dataclasses import replace

import pytest

from engines.config.presets import preset
from engines.config.video_stream import LOOPS, LoopSetting, as_run
from engines.video.builder import require_video
from serving.errors import SlotsFull
from serving.session.pacing import Pace
from serving.worker.capacity.capacity import Capacity, Load

POCKET = preset("pocket")

VIDEO = require_video(POCKET)


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


def video_capacity(
    loop: LoopSetting = "auto", plain: float = 0.2, batch: float = 0.1, encodes_too: bool = False
) -> Capacity:
    found = Capacity(POCKET.transformer, POCKET.stream, loop=loop, encodes_too=encodes_too)
    for named, seconds in (("plain", plain), ("batch", batch)):
        found.denoising.measured(as_run(VIDEO, named), seconds)
    return found


def video_load(seed: int = 0, noise_scale: float = 0.8) -> Load:
    return Load(replace(VIDEO, seed=seed, noise_scale=noise_scale, loop="plain"), Pace())


@pytest.mark.parametrize(("loop", "fits"), [("plain", 1), ("batch", 2), ("auto", 2)])
def test_videos_are_let_in_by_what_they_cost_in_the_loop_that_they_would_be_in(
    loop: LoopSetting, fits: int
) -> None:
    found, there = video_capacity(loop), list[Load]()
    for number in range(fits):
        found.require_time(video_load(number), there, 0.0)
        there.append(video_load(number))
    words = refusal(found, video_load(fits), *there)
    takes = 0.2 if loop == "plain" else 0.1
    assert f"to generate a block takes {takes:.2f} s of the 0.25 s" in words


def test_a_stream_batch_that_would_not_be_chosen_lets_nobody_in() -> None:
    refusal(video_capacity(plain=0.12, batch=0.11), video_load(2), video_load(1))


def test_what_is_proposed_fits_in_the_loop_that_videos_would_be_in() -> None:
    found, there = video_capacity(), [video_load(1), video_load(2)]
    proposed = refusal(found, video_load(3), *there).split("; ")[-1]
    assert proposed == "16 frames/s of 32x48 would fit"


@pytest.mark.parametrize("encodes_too", [False, True])
def test_where_pictures_are_encoded_by_what_denoises_that_takes_its_time(encodes_too: bool) -> None:
    found = video_capacity(encodes_too=encodes_too)
    found.encoding.measured(as_run(VIDEO, "plain"), 0.04)
    assert found.demand(video_load(), 0.0).denoise_s == pytest.approx(0.24 if encodes_too else 0.2)
    assert found.block_s(VIDEO, 0.0) == pytest.approx(0.14 if encodes_too else 0.1)
    assert found.demand(load(), 0.0).denoise_s == found.denoising.expect(POCKET.stream, 0.0)


def test_a_share_of_noise_costs_nothing() -> None:
    found = video_capacity()
    for loop, seconds in (("plain", 0.2), ("batch", 0.1)):
        noisy = as_run(video_load(noise_scale=0.5).stream, loop)
        assert found.denoising.expect(noisy, 0.0) == seconds
        assert 0.2 < found.denoising.expect(replace(noisy, height=48, width=80), 0.0) / seconds < 0.4


def test_a_block_that_opens_a_video_takes_as_much_longer_as_it_has_frames() -> None:
    found = video_capacity()
    assert VIDEO.first_block_frames == 2 * VIDEO.block_frames
    assert [found.opening_s(replace(VIDEO, loop=loop), 0.0) for loop in LOOPS] == [0.4, 0.4]


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
