"""Making every kind of pass before the first viewer comes, so that none waits for a compiler or a capture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from engines.config.stream import StreamConfig
from engines.streaming.generator import Generator
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt


class WarmupProgress(NamedTuple):
    """Blocks made, of all that are to be; streams that go together count as one."""

    done: int
    of: int


def warm_up(generator: Generator, config: StreamConfig, streams: int = 1) -> Iterator[WarmupProgress]:
    """Warm `generator` up for streams of `config`; yields how far it is, and at last that it is done.

    `streams` lie in slabs of their own, as many as will be open at once: where a graph knows its slab, each slab
    gets one. Then as many as may share passes go together, from two on. Raises PoolFull if they find no room.
    """
    opened: list[Stream] = []
    sizes = [1] * streams + [*range(2, min(generator.batch, streams) + 1)]
    blocks = config.window_blocks + 2
    try:
        opened.extend(generator.open(config) for _ in range(streams))
        for number, size in enumerate(sizes):
            group = [opened[number]] if size == 1 else _reopened(generator, opened, size)
            for block in range(blocks):
                yield WarmupProgress(number * blocks + block, len(sizes) * blocks)
                _next_block(generator, group)
    finally:
        for stream in opened:
            generator.close(stream)
    yield WarmupProgress(len(sizes) * blocks, len(sizes) * blocks)


def _reopened(generator: Generator, opened: list[Stream], count: int) -> list[Stream]:
    """`count` streams at their beginning, in place of as many of `opened`."""
    config = opened[0].config
    for _ in range(count):
        generator.close(opened.pop(0))
        opened.append(generator.open(config))
    return opened[-count:]


def _next_block(generator: Generator, streams: Sequence[Stream]) -> None:
    """Under a new prompt: a recache is another kind of pass for each number of blocks in the window."""
    for stream in streams:
        generator.set_prompt(stream, Prompt("warm-up", torch.ones(1, generator.transformer.config.text_dim)))
    for stream, block in zip(streams, generator.generate(streams), strict=True):
        if stream.decoder is not None:
            generator.decode(stream, block)
    generator.write_context(streams)
