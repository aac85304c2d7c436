from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from engines.config.stream import StreamConfig
from engines.config.video_stream import VideoStreamConfig
from engines.errors import SnapshotError, StreamError
from engines.loading.model import Model
from engines.streaming import snapshot as text_snapshot
from engines.streaming.generator import Generator
from engines.streaming.snapshot_format import pack, unpack
from engines.text.prompt import Prompt
from engines.video.generator import VideoGenerator
from engines.video.snapshot import restore, take_exact
from tests.support.generators import generator_for
from tests.support.rollouts import roll_pictures
from tests.support.videos import block_input, roll_video


def roll_and_decode(video: VideoGenerator, config: VideoStreamConfig, blocks: int, prompts: list[Prompt]) -> Any:
    """A stream with blocks on their way, some of them under an earlier prompt."""
    stream = video.open(config)
    for number in range(blocks):
        if number in (0, blocks - 1):
            video.set_prompt(stream, prompts[number > 0])
        (block,) = video.generate([stream], [block_input(config, number)])
        if block is not None:
            video.decode(stream, block)
    return stream


@pytest.mark.parametrize("blocks", [1, 2, 4, 9])
@pytest.mark.parametrize("loop", ["plain", "batch"])
def test_a_stream_goes_on_bit_for_bit_in_another_generator(
    loop: Any, blocks: int, model: Model, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    config = replace(clip, loop=loop)
    stream = roll_and_decode(video, config, blocks, prompts)
    data = take_exact(video, stream)
    wanted = roll_video(video, stream, 6, {})
    elsewhere = VideoGenerator(generator_for(model))
    made = roll_video(elsewhere, restore(elsewhere, data), 6, {})
    assert len(made) == len(wanted) > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(made, wanted, strict=True))


def test_pictures_go_on_too(
    model: Model, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = roll_and_decode(video, clip, 5, prompts)
    elsewhere = VideoGenerator(generator_for(model))
    restored = restore(elsewhere, take_exact(video, stream))
    ours, theirs = (
        made_by.decode(opened, made_by.flush(opened)[0])
        for made_by, opened in ((video, stream), (elsewhere, restored))
    )
    assert torch.equal(ours, theirs)


def test_a_snapshot_is_of_a_stream_with_pictures_or_of_one_without(
    video: VideoGenerator,
    generator: Generator,
    clip: VideoStreamConfig,
    small: StreamConfig,
    prompts: list[Prompt],
) -> None:
    with pytest.raises(SnapshotError, match="restyles a video, which does not go on from a prompt"):
        text_snapshot.restore(generator, take_exact(video, roll_and_decode(video, clip, 3, prompts)))
    text = generator.open(small)
    roll_pictures(generator, text, 1, {0: prompts[0]})
    with pytest.raises(SnapshotError, match="without pictures, which does not restyle a video"):
        restore(video, text_snapshot.take_exact(generator, text))


def test_what_has_not_been_decoded_cannot_be_kept(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = video.open(clip)
    roll_video(video, stream, 1, {0: prompts[0]})
    with pytest.raises(StreamError, match="1 blocks are made but 0 decoded"):
        take_exact(video, stream)


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("loop", "both"), ("progress", [[1, 1, 1, 1]]), ("progress", [[9, 99, 9, 1]] * 3),
        ("rows", [None]),
        ("rows", [[1, 2], None]), ("prompt", 9), ("prompt", None), ("recent", 99), ("entered", -1),
        ("blocks", 1 << 40), ("position", "far"), ("decoder_slots", 1), ("prompts", "x"),
        ("video", {"steps": [1]}),
        ("video", None), ("video", {"steps": [700], "depth": 3}),
    ],
)  # fmt: skip
def test_facts_that_no_stream_has_are_refused_and_leave_nothing_open(
    fact: str, value: object, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = roll_and_decode(video, clip, 6, prompts)
    kind, tensors, facts = unpack(take_exact(video, stream))
    video.close(stream)
    before = video.beside.cache.windows.free, video.beside.cache.prompts.pool.free
    facts.pop("version")
    facts.pop("kind")
    with pytest.raises(SnapshotError):
        restore(video, pack(kind, tensors, json.loads(json.dumps(facts | {fact: value}))))
    assert (video.beside.cache.windows.free, video.beside.cache.prompts.pool.free) == before
