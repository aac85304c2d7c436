"""Making every kind of pass before the first viewer comes, so that none waits for a compiler or a capture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from engines.config.stream import StreamConfig
from engines.device.event_timer import Lap
from engines.device.idle import wait_until_idle
from engines.streaming.generator import Generator
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt

TIMED = 3
"""Blocks of which the quickest counts: something else may hold one up."""


class WarmupProgress(NamedTuple):
    """Blocks made, of all that are to be; streams that go together count as one."""

    done: int
    of: int


def warm_up(generator: Generator, config: StreamConfig, streams: int = 1) -> Iterator[WarmupProgress]:
    """Warm `generator` up for streams of `config`; yields how far it is, and at last that it is done.

    A stream by itself, then as many as may share passes, from two on up to `streams`; which runs they have makes
    no difference. Raises PoolFull if they find no room.
    """
    sizes = range(1, min(generator.batch, streams) + 1)
    blocks = config.blocks.blocks_of(config.window_frames) + 2
    for number, size in enumerate(sizes):
        opened: list[Stream] = []
        try:
            opened.extend(generator.open(config) for _ in range(size))
            for block in range(blocks):
                yield WarmupProgress(number * blocks + block, len(sizes) * blocks)
                _next_block(generator, opened)
        finally:
            for stream in opened:
                generator.close(stream)
    yield WarmupProgress(len(sizes) * blocks, len(sizes) * blocks)


def block_seconds(generator: Generator, config: StreamConfig) -> float:
    """How long the device takes for a block of `config` with the window full: the least of several.

    To be called on a generator that is warm and does nothing else. Raises PoolFull if there is no room.
    """
    stream = generator.open(config)
    try:
        generator.set_prompt(stream, _prompt(generator))
        times = [
            _timed_block(generator, stream) for _ in range(config.blocks.blocks_of(config.window_frames) + TIMED)
        ]
    finally:
        generator.close(stream)
    return min(times[-TIMED:])


def _timed_block(generator: Generator, stream: Stream) -> float:
    lap = Lap(generator.cache.device)
    generator.generate([stream])
    lap.stop()
    wait_until_idle(generator.cache.device)
    if lap.seconds is None:
        raise RuntimeError("the device is idle, and not past the end of a block")
    return lap.seconds


def _prompt(generator: Generator) -> Prompt:
    return Prompt("warm-up", torch.ones(1, generator.config.text_dim))


def _next_block(generator: Generator, streams: Sequence[Stream]) -> None:
    """Under a new prompt: a recache is another kind of pass for each number of frames in the window."""
    for stream in streams:
        generator.set_prompt(stream, _prompt(generator))
    for stream, block in zip(streams, generator.generate(streams), strict=True):
        if stream.decoder is not None:
            generator.decode(stream, block)
    generator.write_context(streams)
