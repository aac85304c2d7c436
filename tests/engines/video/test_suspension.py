"""Video streams that give their windows back for a while."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engines.config.video_stream import Loop, VideoStreamConfig
from engines.errors import PoolFull, StreamError
from engines.loading.model import Model
from engines.streaming.snapshot_format import unpack
from engines.text.prompt import Prompt
from engines.video.generator import VideoGenerator
from engines.video.replay import resume
from engines.video.snapshot import restore, take_exact, take_light
from engines.video.stream import VideoStream
from tests.support.generators import generator_for
from tests.support.videos import block_input, roll_video

LOOPS = pytest.mark.parametrize("loop", ["plain", "batch"])


@pytest.fixture
def narrow(model: Model, clip: VideoStreamConfig) -> VideoGenerator:
    """With room for one stream."""
    return VideoGenerator(generator_for(model, sessions=1, config=clip))


def rolled(
    video: VideoGenerator, config: VideoStreamConfig, prompts: list[Prompt], loop: Loop = "plain", blocks: int = 9
) -> VideoStream:
    """A stream whose last block to begin is the first under another prompt; all that has come out is decoded."""
    stream = video.open(replace(config, loop=loop))
    for number in range(blocks):
        if number in (0, blocks - 1):
            video.set_prompt(stream, prompts[number > 0])
        (block,) = video.generate([stream], [block_input(config, number)])
        if block is not None:
            video.decode(stream, block)
    return stream


@LOOPS
def test_a_suspended_stream_leaves_room_and_goes_on_as_from_its_light_snapshot(
    loop: Loop, narrow: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = rolled(narrow, clip, prompts, loop)
    on_their_way = stream.on_their_way
    light = take_light(narrow, stream)
    narrow.suspend(stream)
    (_, tensors, facts), (_, before, facts_before) = unpack(take_light(narrow, stream)), unpack(light)
    assert (facts, tensors.keys()) == (facts_before, before.keys())
    other = restore(narrow, light)
    wanted = roll_video(narrow, other, 6, {})
    narrow.close(other)
    resume(narrow, stream)
    assert (stream.on_their_way, stream.rebuilt_before) == (on_their_way, [stream.blocks])
    made = roll_video(narrow, stream, 6, {})
    assert len(made) == len(wanted) > 0
    assert all(torch.equal(*pair) for pair in zip(made, wanted, strict=True))


def test_a_stream_that_finds_no_room_stays_suspended(
    narrow: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = rolled(narrow, clip, prompts)
    narrow.suspend(stream)
    other = narrow.open(clip)
    with pytest.raises(PoolFull):
        resume(narrow, stream)
    with pytest.raises(StreamError, match="the stream is suspended before block 9; resume it first"):
        narrow.generate([stream], [block_input(clip, 9)])
    narrow.close(other)
    resume(narrow, stream)
    assert len(roll_video(narrow, stream, 2, {})) == 2


def test_a_light_snapshot_opens_suspended_and_takes_no_room(
    narrow: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = rolled(narrow, clip, prompts, "batch")
    waits = restore(narrow, take_light(narrow, stream), suspended=True)
    assert (waits.is_suspended, waits.on_their_way) == (True, stream.on_their_way)
    wanted = roll_video(narrow, stream, 6, {})
    narrow.close(stream)
    resume(narrow, waits)
    made = roll_video(narrow, waits, 6, {})
    assert all(torch.equal(*pair) for pair in zip(made, wanted, strict=True))


def test_a_stream_opens_suspended_and_begins_once_it_is_resumed(
    narrow: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = narrow.suspended(replace(clip, loop="plain"))
    narrow.close(narrow.open(clip))
    resume(narrow, stream)
    assert len(roll_video(narrow, stream, 3, {0: prompts[0]})) == 3
    assert stream.rebuilt_before == []


def test_a_sink_that_was_just_renewed_is_renewed_once_it_is_resumed(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream, undisturbed = (rolled(video, clip, prompts) for _ in range(2))
    for one in (stream, undisturbed):
        video.renew_sink(one)
    video.suspend(stream)
    resume(video, stream)
    made, wanted = (roll_video(video, one, 6, {}) for one in (stream, undisturbed))
    assert all(torch.equal(*pair) for pair in zip(made, wanted, strict=True))


def test_what_needs_windows_is_refused_of_a_suspended_stream(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = rolled(video, clip, prompts, blocks=3)
    with pytest.raises(StreamError, match="the stream is not suspended: it can begin block 3"):
        resume(video, stream)
    video.suspend(stream)
    for refused in (
        lambda: video.suspend(stream), lambda: video.renew_sink(stream), lambda: video.reopen(stream),
        lambda: video.use_loop(stream, "batch"), lambda: video.flush(stream), lambda: video.fork(stream),
        lambda: video.set_prompt(stream, prompts[1]), lambda: take_exact(video, stream),
    ):  # fmt: skip
        with pytest.raises(StreamError, match="resume it first"):
            refused()
    video.close(stream)


def test_a_block_that_is_not_decoded_keeps_a_stream_from_being_suspended(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = video.open(replace(clip, loop="plain"))
    roll_video(video, stream, 1, {0: prompts[0]})
    with pytest.raises(StreamError, match="1 blocks are made but 0 decoded; decode first"):
        video.suspend(stream)
    assert not stream.is_suspended
