"""Making every kind of pass before the first viewer comes, so that none waits for a compiler or a capture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from engines.config import StreamConfig
from engines.generator import Generator
from engines.prompt import Prompt
from engines.stream import Stream


class Progress(NamedTuple):
    """Blocks made, of all that are to be."""

    done: int
    of: int


def warm_up(generator: Generator, config: StreamConfig, streams: int = 1) -> Iterator[Progress]:
    """Warm `generator` up for streams of `config`; yields how far it is, and at last that it is done.

    `streams` lie in slabs of their own, as many as will be open at once: where a graph knows its slab, each slab
    gets one. Raises SlabsFull if they find no room.
    """
    opened: list[Stream] = []
    blocks = config.window_blocks + 2
    try:
        opened.extend(generator.open(config) for _ in range(streams))
        for number, stream in enumerate(opened):
            for block in range(blocks):
                yield Progress(number * blocks + block, streams * blocks)
                _next_block(generator, stream)
    finally:
        for stream in opened:
            generator.close(stream)
    yield Progress(streams * blocks, streams * blocks)


def _next_block(generator: Generator, stream: Stream) -> None:
    """With a prompt switch when the window is full, and one when it has rolled."""
    if stream.blocks == 0 or stream.blocks >= stream.config.window_blocks:
        generator.set_prompt(stream, Prompt("warm-up", torch.ones(1, generator.transformer.config.text_dim)))
    (block,) = generator.generate([stream])
    if stream.decoder is not None:
        generator.decode(stream, block)
    generator.settle([stream])
