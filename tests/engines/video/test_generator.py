from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from threading import Event

import pytest
import torch
from torch import Tensor

from engines.config.video_stream import Loop, VideoStreamConfig
from engines.errors import Cancelled, PoolFull, StreamError
from engines.loading.model import Model
from engines.runner.eager import EagerAttention
from engines.text.prompt import Prompt
from engines.video.generator import VideoGenerator
from engines.video.stream import VideoStream
from kernels.slot_choice.slot_queue import CAPACITY, SLOT
from tests.support.generators import denoiser_for, generator_for
from tests.support.videos import block_input, roll_video

LOOPS: list[Loop] = ["plain", "batch"]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("loop", LOOPS)
def test_streams_that_share_passes_are_bit_equal_to_each_alone(
    loop: Loop, model: Model, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    configs = [replace(clip, loop=loop, seed=seed) for seed in range(2)]
    alone = VideoGenerator(generator_for(model))
    wanted = [
        roll_video(alone, alone.open(config), 9, {0: prompts[i]}, seed=i) for i, config in enumerate(configs)
    ]
    batching = VideoGenerator(denoiser_for(model.transformer, batch=4))
    streams = [batching.open(config) for config in configs]
    made: list[list[Tensor]] = [[], []]
    for number in range(9):
        for stream, prompt in zip(streams, prompts, strict=False):
            if number == 0:
                batching.set_prompt(stream, prompt)
        blocks = batching.generate(streams, [block_input(clip, number, seed) for seed in range(2)])
        for latents, block in zip(made, blocks, strict=True):
            latents += [] if block is None else [block.latents]
    for ours, theirs in zip(made, wanted, strict=True):
        assert_equal(ours, theirs)


def test_a_block_of_a_stream_batch_comes_out_when_its_steps_are_done(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = video.open(clip)
    video.set_prompt(stream, prompts[0])
    out = [video.generate([stream], [block_input(clip, number)])[0] for number in range(6)]
    assert [None if block is None else block.number for block in out] == [0, None, None, 1, 2, 3]
    assert [block.number for block in video.flush(stream)] == [4, 5]


@pytest.mark.parametrize("failing", range(1, 7))
def test_a_flush_that_fails_loses_no_block(
    failing: int, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    wanted = roll_video(video, video.open(clip), 8, {0: prompts[0]})
    stream = video.open(clip)
    made = roll_video(video, stream, 6, {0: prompts[0]})
    monkeypatch.setattr(EagerAttention, "cross_attention", failing_at(failing, EagerAttention.cross_attention))
    with pytest.raises(ZeroDivisionError):
        video.flush(stream)
    monkeypatch.undo()
    if stream.flushed:
        with pytest.raises(StreamError, match="repeat it before the next block"):
            video.generate([stream], [block_input(clip, 6)])
    flushed = video.flush(stream)
    assert [block.number for block in flushed] == [4, 5]
    assert_equal([*made, *(block.latents for block in flushed)], wanted)


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("flushed", [0, 1, 2, 3])
def test_a_flush_soon_after_the_opening_changes_no_block(
    flushed: int, seed: int, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    config = replace(clip, steps=(850, 750, 500, 250), seed=seed)
    wanted = roll_video(video, video.open(config), 16 + len(config.steps) - 1, {0: prompts[0]})
    stream = video.open(config)
    made = roll_video(video, stream, flushed + 1, {0: prompts[0]})
    made += [block.latents for block in video.flush(stream)]
    made += roll_video(video, stream, 15 - flushed, {})
    assert_equal([*made, *(block.latents for block in video.flush(stream))], wanted)


def test_a_prompt_holds_for_blocks_that_begin_and_no_others(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    kept = roll_video(video, video.open(clip), 10, {0: prompts[0]})
    switched = roll_video(video, video.open(clip), 10, {0: prompts[0], 5: prompts[1]})
    same = [torch.equal(a, b) for a, b in zip(kept, switched, strict=True)]
    assert same == [True] * 5 + [False] * 3


@pytest.mark.parametrize("loop", LOOPS)
def test_pictures_decide_what_comes_out_and_so_does_the_seed(
    loop: Loop, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    config = replace(clip, loop=loop)
    first = roll_video(video, video.open(config), 5, {0: prompts[0]})
    assert_equal(roll_video(video, video.open(config), 5, {0: prompts[0]}), first)
    other_pictures = roll_video(video, video.open(config), 5, {0: prompts[0]}, seed=1)
    other_noise = roll_video(video, video.open(replace(config, seed=99)), 5, {0: prompts[0]})
    assert not torch.equal(other_pictures[-1], first[-1])
    assert not torch.equal(other_noise[-1], first[-1])


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("failing", [1, 2, 4, 7])
def test_a_block_that_fails_in_a_middle_layer_is_made_again_with_the_same_result(
    failing: int, loop: Loop, exact: bool, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = replace(clip, loop=loop, exact=exact)
    wanted = roll_video(video, video.open(config), 12, {0: prompts[0]})
    stream = video.open(config)
    made = roll_video(video, stream, 8, {0: prompts[0]})
    block = block_input(config, 8)
    monkeypatch.setattr(EagerAttention, "cross_attention", failing_at(failing, EagerAttention.cross_attention))
    with pytest.raises(ZeroDivisionError):
        video.generate([stream], [block])
    monkeypatch.undo()
    (out,) = video.generate([stream], [block])
    assert out is not None
    assert_equal([*made, out.latents, *roll_video(video, stream, 3, {})], wanted)


def failing_at(call: int, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`attend`, which fails at a call."""
    calls = 0

    def failing(*arguments: object) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise ZeroDivisionError
        return attend(*arguments)

    return failing


def test_a_cancelled_block_goes_on_where_it_was(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = video.open(replace(clip, loop="plain"))
    video.set_prompt(stream, prompts[0])
    cancelled = Event()
    cancelled.set()
    with pytest.raises(Cancelled, match="before step 0 of 3"):
        video.generate([stream], [block_input(clip, 0)], cancelled)
    assert stream.entered == 0
    assert len(roll_video(video, stream, 1, {})) == 1


def test_loops_change_without_a_block_lost(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = video.open(clip)
    numbers: list[int] = []
    video.set_prompt(stream, prompts[0])
    for entered, loop in enumerate(["batch"] * 6 + ["plain"] * 3 + ["batch"] * 6):
        if loop != stream.loop:
            numbers += [block.number for block in video.flush(stream)]
            video.use_loop(stream, "plain" if loop == "plain" else "batch")
        (block,) = video.generate([stream], [block_input(clip, entered)])
        numbers += [] if block is None else [block.number]
    assert numbers + [block.number for block in video.flush(stream)] == list(range(15))


def test_a_loop_is_not_left_while_blocks_are_on_their_way(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = video.open(clip)
    roll_video(video, stream, 3, {0: prompts[0]})
    with pytest.raises(StreamError, match="flush them before the plain loop"):
        video.use_loop(stream, "plain")


def test_one_step_is_the_same_in_either_loop(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    one = replace(clip, steps=(700,))
    loops = [roll_video(video, video.open(replace(one, loop=loop)), 9, {0: prompts[0]}) for loop in LOOPS]
    assert_equal(*loops)


def test_the_later_steps_of_a_plain_block_stay_in_its_slot_unless_it_is_to_be_as_published(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    config = replace(clip, loop="plain", sink_threshold=None)
    written = {exact: slots(video, replace(config, exact=exact), prompts[0]) for exact in (True, False)}
    assert written[False] == [5, 3, 4, 5, 3]
    assert written[True] != written[False]


def slots(video: VideoGenerator, config: VideoStreamConfig, prompt: Prompt) -> list[int]:
    """The slot that the last step of each block took once the window is full."""
    stream = video.open(config)
    roll_video(video, stream, 4, {0: prompt})
    taken = []
    for _ in range(5):
        roll_video(video, stream, 1, {})
        taken.append(last_slots(video, stream)[0])
    return taken


@pytest.mark.parametrize("loop", LOOPS)
def test_a_renewed_sink_is_given_up_frame_by_frame_and_the_ring_goes_on_behind(
    loop: Loop, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    config = replace(clip, loop=loop, exact=False, sink_threshold=None)
    stream = video.open(config)
    roll_video(video, stream, 10, {0: prompts[0]})
    video.renew_sink(stream)
    taken = []
    for _ in range(5):
        roll_video(video, stream, 1, {})
        taken.append(last_slots(video, stream))
    lanes = len(config.steps) if loop == "batch" else 1
    assert [len(set(slots[:lanes])) for slots in taken[:3]] == [1] * 3
    assert [slots[0] for slots in taken[:3]] == [0, 1, 2]
    assert {slots[0] for slots in taken[3:]} <= {3, 4, 5}


def test_a_sink_that_is_renewed_twice_before_a_block_is_renewed_once(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    made = []
    for times in (1, 2):
        stream = video.open(replace(clip, loop="plain", sink_threshold=None))
        roll_video(video, stream, 8, {0: prompts[0]})
        for _ in range(times):
            video.renew_sink(stream)
        made.append(roll_video(video, stream, 6, {}))
    assert_equal(*made)


def test_a_sink_that_is_renewed_again_and_again_is_renewed_each_time_and_leaves_the_ring_its_places(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = video.open(replace(clip, loop="plain", exact=False, sink_threshold=None))
    roll_video(video, stream, 10, {0: prompts[0]})
    taken = list[int]()
    for _ in range(CAPACITY // 2):
        video.renew_sink(stream)
        roll_video(video, stream, 1, {})
        taken += last_slots(video, stream)[:1]
    assert taken == [0] * (CAPACITY // 2)
    assert video.lost_slots(stream) == 4 * video.beside.cache.layout.layers, (
        "two more find no room in each of the last two"
    )
    for _ in range(CAPACITY + 3):
        roll_video(video, stream, 1, {})
        taken += last_slots(video, stream)[:1]
    assert taken[CAPACITY // 2 :][:2] == [1, 2]
    assert set(taken[-6:]) == {3, 4, 5}


def last_slots(video: VideoGenerator, stream: VideoStream) -> list[int]:
    """The slot that the first layer of each window took last."""
    states = [video.beside.cache.state(lane, 0)["records"][0] for lane in stream.lanes]
    return [
        int(records[progress.writes % stream.window.records, SLOT])
        for records, progress in zip(states, stream.progress, strict=True)
    ]


def roll_and_reopen(video: VideoGenerator, config: VideoStreamConfig, prompt: Prompt, seed: int) -> VideoStream:
    """Seven blocks, out and decoded, and the stream is to be opened anew."""
    stream = video.open(config)
    video.set_prompt(stream, prompt)
    for number in range(7):
        (block,) = video.generate([stream], [block_input(config, number, seed)])
        if block is not None:
            video.decode(stream, block)
    for block in video.flush(stream):
        video.decode(stream, block)
    video.reopen(stream)
    return stream


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stream_that_is_opened_anew_has_forgotten_all_that_was_before(
    loop: Loop, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    config = replace(clip, loop=loop)
    streams = [roll_and_reopen(video, config, prompts[seed], seed) for seed in range(2)]
    ours, theirs = (roll_video(video, stream, 9, {7: prompts[2]}, seed=2) for stream in streams)
    assert_equal(ours, theirs)
    assert [latents.shape[0] for latents in ours] == [2] + [1] * (8 if loop == "plain" else 6)


@pytest.mark.parametrize("loop", LOOPS)
def test_its_opening_comes_out_at_once_and_has_as_many_pictures_as_a_later_block(
    loop: Loop, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = roll_and_reopen(video, replace(clip, loop=loop), prompts[0], 0)
    opening, after = (
        video.generate([stream], [block_input(stream.config, number, opening=7)])[0] for number in (7, 8)
    )
    assert opening is not None
    assert (opening.number, opening.lead_in, stream.position) == (7, 1, 3)
    assert video.decode(stream, opening).shape[0] == 4
    assert (after is None) == (loop == "batch")
    assert after is None or (after.number, after.lead_in) == (8, 0)


def test_an_opening_that_fails_is_made_again_with_the_same_result(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(clip, loop="plain")
    wanted = roll_video(video, roll_and_reopen(video, config, prompts[0], 0), 5, {})
    stream = roll_and_reopen(video, config, prompts[0], 0)
    block = block_input(config, 7, opening=7)
    monkeypatch.setattr(EagerAttention, "cross_attention", failing_at(4, EagerAttention.cross_attention))
    with pytest.raises(ZeroDivisionError):
        video.generate([stream], [block])
    monkeypatch.undo()
    video.reopen(stream)
    (out,) = video.generate([stream], [block])
    assert out is not None
    assert_equal([out.latents, *roll_video(video, stream, 4, {})], wanted)


def test_a_stream_is_opened_anew_only_once_all_before_is_out_and_decoded(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = video.open(clip)
    roll_video(video, stream, 4, {0: prompts[0]})
    with pytest.raises(StreamError, match="flush them"):
        video.reopen(stream)
    blocks = video.flush(stream)
    assert len(blocks) == 2
    with pytest.raises(StreamError, match="4 blocks are made but 0 decoded"):
        video.reopen(stream)


def test_blocks_that_are_as_long_as_the_first_open_nothing_anew(
    model: Model, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    video = VideoGenerator(denoiser_for(model.transformer))
    stream = video.open(replace(clip, block_frames=2, sink_threshold=None, loop="plain"))
    roll_video(video, stream, 2, {0: prompts[0]})
    with pytest.raises(StreamError, match="blocks of 2 are as long as the first"):
        video.reopen(stream)


def test_what_is_not_the_next_input_is_refused(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = video.open(clip)
    with pytest.raises(StreamError, match="no prompt"):
        video.generate([stream], [block_input(clip, 0)])
    video.set_prompt(stream, prompts[0])
    with pytest.raises(StreamError, match="next is block 0, of 2"):
        video.generate([stream], [block_input(clip, 1)])
    with pytest.raises(StreamError, match="named twice"):
        video.generate([stream, stream], [block_input(clip, 0)] * 2)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_fork_goes_on_by_itself(
    loop: Loop, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = video.open(replace(clip, loop=loop))
    roll_video(video, stream, 7, {0: prompts[0], 6: prompts[1]})
    fork = video.fork(stream)
    switched = roll_video(video, fork, 5, {7: prompts[2]})
    video.close(fork)
    kept = roll_video(video, stream, 5, {})
    again = roll_video(video, video.open(replace(clip, loop=loop)), 12, {0: prompts[0], 6: prompts[1]})
    assert_equal(kept, again[-5:])
    assert not torch.equal(switched[-1], kept[-1])


def test_a_closed_stream_leaves_room_for_another(
    model: Model, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    video = VideoGenerator(generator_for(model, sessions=1, config=clip))
    for _ in range(3):
        stream = video.open(clip)
        roll_video(video, stream, 5, {0: prompts[0], 2: prompts[1], 3: prompts[2]})
        with pytest.raises(PoolFull):
            video.open(clip)
        video.close(stream)


def test_a_video_and_a_text_stream_live_in_the_same_pools(
    model: Model, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    beside = generator_for(model)
    video = VideoGenerator(beside)
    wanted = roll_video(video, video.open(clip), 6, {0: prompts[0]})
    text, stream = beside.open(model.config.stream), video.open(clip)
    beside.set_prompt(text, prompts[1])
    made = []
    for number in range(6):
        made += roll_video(video, stream, 1, {0: prompts[0]})
        assert beside.generate([text])[0].number == number
    assert_equal(made, wanted)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stream_without_pictures_is_noise_that_ends_at_step_0(
    loop: Loop, video: VideoGenerator, prompts: list[Prompt]
) -> None:
    config = VideoStreamConfig(
        height=16, width=32, block_frames=3, first_block_frames=3, window_frames=21, sink_frames=0,
        sink_threshold=None, steps=(1000, 500, 0), loop=loop,
    )  # fmt: skip
    stream = video.open(config)
    assert all(torch.isfinite(latents).all() for latents in roll_video(video, stream, 20, {0: prompts[0]}))
    assert stream.position == 29, "set back to 20 at 51"
