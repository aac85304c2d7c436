"""Making every kind of pass of video streams before the first viewer comes, so that none waits for a capture."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from engines.config.video_stream import VideoStreamConfig
from engines.device.event_timer import Lap
from engines.device.idle import wait_until_idle
from engines.streaming.warmup import TIMED, WarmupProgress
from engines.text.prompt import Prompt
from engines.video.generator import VideoGenerator
from engines.video.input import BlockInput, InputEncoder, InputState
from engines.video.stream import VideoStream


def warm_up(
    video: VideoGenerator, encoder: InputEncoder, config: VideoStreamConfig, streams: int = 1
) -> Iterator[WarmupProgress]:
    """Warm `video` up for streams of `config` in any loop; yields how far it is, and at last that it is done.

    A stream by itself, then as many as may share passes, from two on up to `streams`. All are stream batches,
    whose passes are those of plain blocks too: as many frames, and rows from one on. Raises PoolFull if they find
    no room.
    """
    batched, most = replace(config, loop="batch"), min(video.beside.batch, streams)
    for size in range(1, most + 1):
        yield WarmupProgress(size - 1, most)
        restyle_full_window(video, encoder, batched, size)
    yield WarmupProgress(most, most)


def restyle_full_window(
    video: VideoGenerator, encoder: InputEncoder, config: VideoStreamConfig, size: int = 1
) -> None:
    """All that `size` streams of one loop do together, once, and decoding it.

    That is a first block, passes over a full window, a flush, and in a stream batch what comes after one: rows
    that fill up again beside those of streams whose rows are full. Raises PoolFull if they find no room.
    """
    opened: list[VideoStream] = []
    state = encoder.start(config)
    try:
        opened.extend(video.open(config) for _ in range(size))
        for stream in opened:
            video.set_prompt(stream, _prompt(video))
        for _ in range(config.blocks.blocks_of(config.window_frames) + config.passes + 1):
            state = _next_block(video, encoder, opened, state)
        _flush(video, opened[-1])
        for _ in range(config.passes):
            state = _next_block(video, encoder, opened, state)
    finally:
        for stream in opened:
            video.close(stream)


class BlockSeconds(NamedTuple):
    """How long a block's pictures take to be encoded, and its passes."""

    encode: float
    generate: float


def block_seconds(video: VideoGenerator, encoder: InputEncoder, config: VideoStreamConfig) -> BlockSeconds:
    """How long a block takes, the window full: the least of several.

    To be called on a generator that is warm and does nothing else. Raises PoolFull if there is no room.
    """
    opened, state, times = video.open(config), encoder.start(config), list[BlockSeconds]()
    try:
        video.set_prompt(opened, _prompt(video))
        for number in range(config.blocks.blocks_of(config.window_frames) + TIMED):
            began = time.perf_counter()
            made = encoder.encode(config, _blank(config, number), state)
            state, encoding = made.after, time.perf_counter() - began
            lap = Lap(video.beside.cache.device)
            video.generate([opened], made.inputs)
            lap.stop()
            wait_until_idle(video.beside.cache.device)
            times.append(BlockSeconds(encoding, lap.seconds or 0.0))
    finally:
        video.close(opened)
    return BlockSeconds(*map(min, zip(*times[-TIMED:], strict=True)))


def _next_block(
    video: VideoGenerator, encoder: InputEncoder, streams: list[VideoStream], state: InputState
) -> InputState:
    """Of all of them, from the same pictures."""
    config = streams[0].config
    made = encoder.encode(config, _blank(config, streams[0].entered), state)
    inputs: list[BlockInput] = made.inputs * len(streams)
    for stream, block in zip(streams, video.generate(streams, inputs), strict=True):
        if block is not None and stream.decoder is not None:
            video.decode(stream, block)
    return made.after


def _flush(video: VideoGenerator, stream: VideoStream) -> None:
    for block in video.flush(stream):
        if stream.decoder is not None:
            video.decode(stream, block)


def _prompt(video: VideoGenerator) -> Prompt:
    return Prompt("warm-up", torch.ones(1, video.beside.config.text_dim))


def _blank(config: VideoStreamConfig, block: int) -> Tensor:
    frames = config.blocks.pixel_frames_of(block)
    return torch.zeros(frames, config.height, config.width, 3, dtype=torch.uint8)
