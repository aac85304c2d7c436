from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.config.stream import StreamConfig
from engines.config.video_stream import VideoStreamConfig
from engines.errors import SnapshotError, StreamError
from engines.loading.model import Model
from engines.streaming import snapshot as text_snapshot
from engines.streaming.generator import Generator
from engines.streaming.snapshot_format import Kind, pack, unpack
from engines.text.prompt import Prompt
from engines.video.generator import VideoGenerator
from engines.video.input import InputEncoder
from engines.video.input_snapshot import restore_input
from engines.video.snapshot import restore, take_exact, take_light
from engines.video.stream import VideoStream
from tests.support.generators import generator_for
from tests.support.rollouts import roll_pictures
from tests.support.videos import block_input, roll_video

NEAR = 1e-5
"""To what the stream would have been, in latents of 2: 4e-7 is seen."""

NEAR_RENEWED = 0.01
"""The same where the sink saw a window that has gone: 0.0045 is seen, and 0.05 with other blocks in the sink."""


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


@pytest.mark.parametrize("blocks", [1, 2, 4, 9, 10])
@pytest.mark.parametrize("loop", ["plain", "batch"])
def test_a_light_snapshot_goes_on_bit_for_bit_while_no_input_has_gone(
    loop: Any, blocks: int, model: Model, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = roll_and_decode(video, replace(clip, loop=loop), blocks, prompts)
    elsewhere = VideoGenerator(generator_for(model))
    restored = restore(elsewhere, take_light(video, stream))
    assert (restored.rebuilt_before, restored.on_their_way) == ([stream.blocks], stream.on_their_way)
    made, wanted = roll_video(elsewhere, restored, 6, {}), roll_video(video, stream, 6, {})
    assert len(made) == len(wanted) > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(made, wanted, strict=True))


@pytest.mark.parametrize("loop", ["plain", "batch"])
@pytest.mark.parametrize("blocks", [14, 47, 49, 56])
def test_a_light_snapshot_goes_on_near_its_stream_and_the_same_each_time(
    loop: Any, blocks: int, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = roll_and_decode(video, replace(clip, loop=loop, sink_threshold=None), blocks, prompts)
    data = take_light(video, stream)
    wanted, *again = (
        roll_video(video, one, 9, {}) for one in (stream, restore(video, data), restore(video, data))
    )
    assert len(wanted) == len(again[0])
    assert all(torch.equal(*pair) for pair in zip(*again, strict=True))
    far = max(float((a - b).abs().max()) for a, b in zip(again[0], wanted, strict=True))
    assert far < NEAR


@pytest.mark.parametrize("loop", ["plain", "batch"])
def test_a_light_snapshot_keeps_a_sink_that_was_renewed(
    loop: Any, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = roll_and_decode(video, replace(clip, loop=loop, sink_threshold=None), 12, prompts)
    video.renew_sink(stream)
    for _ in range(14):
        (block,) = video.generate([stream], [block_input(stream.config, stream.entered)])
        assert block is not None
        video.decode(stream, block)
    restored = restore(video, take_light(video, stream))
    wanted, made = (roll_video(video, one, 6, {}) for one in (stream, restored))
    assert max(float((a - b).abs().max()) for a, b in zip(made, wanted, strict=True)) < NEAR_RENEWED


@pytest.mark.parametrize("blocks", [0, 1, 2, 9])
@pytest.mark.parametrize("loop", ["plain", "batch"])
@pytest.mark.parametrize("take", [take_exact, take_light])
def test_a_stream_that_was_opened_anew_goes_on_bit_for_bit_as_if_it_had_just_begun(
    take: Callable[[VideoGenerator, VideoStream], bytes], loop: Any, blocks: int, model: Model,
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt],
) -> None:  # fmt: skip
    stream = roll_and_decode(video, replace(clip, loop=loop), 12, prompts)
    for block in video.flush(stream):
        video.decode(stream, block)
    video.reopen(stream)
    for number in range(12, 12 + blocks):
        (made,) = video.generate([stream], [block_input(clip, number, opening=12)])
        if made is not None:
            video.decode(stream, made)
    elsewhere = VideoGenerator(generator_for(model))
    restored = restore(elsewhere, take(video, stream))
    assert (restored.opening, restored.entered, restored.blocks) == (12, 12 + blocks, stream.blocks)
    ours, theirs = roll_video(elsewhere, restored, 6, {}), roll_video(video, stream, 6, {})
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_a_stream_that_a_light_snapshot_opened_can_be_kept_again(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    restored = restore(video, take_light(video, roll_and_decode(video, clip, 20, prompts)))
    again = restore(video, take_exact(video, restored))
    assert [kept.number for kept in again.inputs] == [kept.number for kept in restored.inputs]
    assert again.rebuilt_before == restored.rebuilt_before == [restored.blocks]
    light = restore(video, take_light(video, again))
    assert (light.entered, light.position, light.blocks) == (20, restored.position, restored.blocks)


def test_blocks_that_were_flushed_do_not_come_out_again(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = roll_and_decode(video, clip, 14, prompts)
    for block in video.flush(stream):
        video.decode(stream, block)
    restored = restore(video, take_light(video, stream))
    for one in (stream, restored):
        blocks = [video.generate([one], [block_input(clip, 14 + i)])[0] for i in range(3)]
        assert [None if block is None else block.number for block in blocks] == [None, None, 14]


@pytest.mark.parametrize("take", [take_exact, take_light])
def test_pictures_go_on_too(
    take: Callable[[VideoGenerator, VideoStream], bytes],
    model: Model,
    video: VideoGenerator,
    clip: VideoStreamConfig,
    prompts: list[Prompt],
) -> None:
    stream = roll_and_decode(video, clip, 5, prompts)
    elsewhere = VideoGenerator(generator_for(model))
    restored = restore(elsewhere, take(video, stream))
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


def test_what_the_encoder_remembers_goes_along(
    encoder: InputEncoder, video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    pictures = torch.randint(0, 256, (13, 16, 32, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    state = encoder.encode(clip, pictures[:9], encoder.start(clip)).after
    stream = roll_and_decode(video, clip, 2, prompts)
    restored = restore_input(encoder, clip, take_exact(video, stream, state))
    (ours,), (theirs,) = (encoder.encode(clip, pictures[9:], one).inputs for one in (restored, state))
    assert ours._replace(latents=theirs.latents) == theirs
    assert torch.equal(ours.latents, theirs.latents)
    with pytest.raises(SnapshotError, match="holds no encoder's state"):
        restore_input(encoder, clip, take_exact(video, stream))


@pytest.mark.parametrize(
    "broken",
    [{"blocks": -1}, {"blocks": 0}, {"scale": None}, {"scale": 7.0}, {"scale": "much"}, {"noise": {"scale": 9}}],
    ids=str,
)
def test_an_encoders_memory_that_none_has_is_refused(
    broken: dict[str, object],
    encoder: InputEncoder,
    video: VideoGenerator,
    clip: VideoStreamConfig,
    prompts: list[Prompt],
) -> None:
    pictures = torch.zeros(5, 16, 32, 3, dtype=torch.uint8)
    state = encoder.encode(clip, pictures, encoder.start(clip)).after
    data = take_exact(video, roll_and_decode(video, clip, 2, prompts), state)
    kind, tensors, facts = unpack(data)
    with pytest.raises(SnapshotError, match="inconsistent"):
        restore_input(encoder, clip, repacked(kind, tensors, facts, {"input": facts["input"] | broken}))


def test_what_has_not_been_decoded_cannot_be_kept(
    video: VideoGenerator, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    stream = video.open(clip)
    roll_video(video, stream, 1, {0: prompts[0]})
    with pytest.raises(StreamError, match="1 blocks are made but 0 decoded"):
        take_exact(video, stream)


WRONG = [
    ("loop", "both"), ("prompt", 9), ("prompt", None), ("recent", 99), ("recent", 0), ("recent", "x"),
    ("entered", -1), ("entered", 5), ("entered", 1 << 40), ("blocks", 1 << 40), ("blocks", 0), ("position", "far"),
    ("decoded_blocks", None), ("prompts", "x"), ("video", {"steps": [1]}), ("video", None),
    ("opening", -1), ("opening", 2), ("opening", 7), ("opening", "x"),
    ("video", {"steps": [700], "depth": 3}), ("renewing", "yes"), ("on_their_way", 3), ("on_their_way", -1),
    ("rebuilt_before", [-1]), ("rebuilt_before", 3), ("inputs", []), ("inputs", None), ("inputs", [[0]]),
    ("inputs", [[0, "a", 700, 0, 0, False]]), ("inputs", [[0, 0.8, 700, 0, 7, False]] * 6),
    ("inputs", [[block, 0.8, 9000, 0, 0, False] for block in range(6)]),
    ("inputs", [[block, 0.8, 700, 1 << 20, 0, False] for block in range(6)]),
    ("inputs", [[block, 8.0, 700, 0, 0, False] for block in range(6)]),
]  # fmt: skip
WRONG_EXACT = [
    ("progress", [[1, 1, 1, 1]]), ("progress", [[9, 99, 9, 1]] * 3), ("progress", None), ("rows", [None]),
    ("rows", [[1, 2], None]), ("rows", [[1, 2, 9], None]), ("decoder_slots", 1),
]  # fmt: skip


def repacked(kind: Kind, tensors: dict[str, Tensor], facts: dict[str, Any], changed: dict[str, object]) -> bytes:
    """A snapshot with other facts."""
    kept = {name: value for name, value in facts.items() if name not in ("version", "kind")}
    return pack(kind, tensors, kept | changed)


@pytest.mark.parametrize(
    ("take", "fact", "value"),
    [(take_exact, *wrong) for wrong in WRONG + WRONG_EXACT] + [(take_light, *wrong) for wrong in WRONG],
)
def test_facts_that_no_stream_has_are_refused_and_leave_nothing_open(
    take: Callable[[VideoGenerator, VideoStream], bytes],
    fact: str,
    value: object,
    video: VideoGenerator,
    clip: VideoStreamConfig,
    prompts: list[Prompt],
) -> None:
    stream = roll_and_decode(video, clip, 6, prompts)
    data = take(video, stream)
    video.close(stream)
    before = video.beside.cache.windows.free, video.beside.cache.prompts.pool.free
    with pytest.raises(SnapshotError):
        restore(video, repacked(*unpack(data), {fact: value}))
    assert (video.beside.cache.windows.free, video.beside.cache.prompts.pool.free) == before


@pytest.mark.parametrize("take", [take_exact, take_light])
@pytest.mark.parametrize(
    "change", [lambda x: x[..., :1], lambda x: x.to(torch.int16), None], ids=["shape", "dtype", "gone"]
)
def test_tensors_that_no_stream_has_are_refused_and_leave_nothing_open(
    take: Callable[[VideoGenerator, VideoStream], bytes],
    change: Callable[[Tensor], Tensor] | None,
    video: VideoGenerator,
    clip: VideoStreamConfig,
    prompts: list[Prompt],
) -> None:
    stream = roll_and_decode(video, clip, 6, prompts)
    kind, tensors, facts = unpack(take(video, stream))
    video.close(stream)
    before = video.beside.cache.windows.free, video.beside.cache.prompts.pool.free
    for name in tensors:
        if name.startswith("decoder."):
            continue
        others = {other: tensor for other, tensor in tensors.items() if other != name}
        changed = others if change is None else others | {name: change(tensors[name])}
        with pytest.raises(SnapshotError):
            restore(video, repacked(kind, changed, facts, {}))
    assert (video.beside.cache.windows.free, video.beside.cache.prompts.pool.free) == before
