"""A transformer's inputs, watched while it makes videos as it will be asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engines.config.stream import StreamConfig
from engines.config.validation import require
from engines.loading.model import Model
from engines.quantization.inputs import InputStatistics, watched
from engines.streaming.builder import EngineConfig, build_generator
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt

LEAST_BLOCKS = 2
"""A prompt is followed for a block at least, and another one from the next block on."""


def calibrate(
    model: Model,
    prompts: Sequence[Prompt],
    stream: StreamConfig,
    blocks: int,
    made: Callable[[int], None] = lambda _: None,
    *,
    moments: bool = True,
) -> InputStatistics:
    """Statistics of a stream of `blocks` for each of `prompts`, every timestep and clean pass included.

    The last two blocks of a stream follow the next prompt, so a KV recache is seen as well. Passes run where the
    transformer is, in its dtype; `made` is told how many blocks are done. Without `moments` there are only maxima.
    """
    with watched(model.transformer, model.config.transformer, moments=moments) as statistics:
        for number, _ in enumerate(rollouts(model, prompts, stream, blocks)):
            made((number + 1) * blocks)
    return statistics


def rollouts(model: Model, prompts: Sequence[Prompt], stream: StreamConfig, blocks: int) -> Iterator[Tensor]:
    """Streams as `calibrate` watches them, one for each prompt: latents [1, frames, ...] fp32 on the CPU."""
    require(len(prompts) >= 1, "there are no prompts to calibrate with")
    require(blocks >= LEAST_BLOCKS, f"blocks is {blocks}; it must be at least {LEAST_BLOCKS}")
    generator = build_generator(model, EngineConfig(stream, decodes=False))
    following = [*prompts[1:], prompts[0]]
    try:
        for number, (prompt, other) in enumerate(zip(prompts, following, strict=True)):
            yield _roll_out(generator, replace(stream, seed=number), (prompt, other), blocks)
    finally:
        generator.release()


def _roll_out(generator: Generator, config: StreamConfig, prompts: tuple[Prompt, Prompt], blocks: int) -> Tensor:
    stream, latents = generator.open(config), list[Tensor]()
    switch = max(1, blocks - 2)
    for block in range(blocks):
        if block in (0, switch):
            generator.set_prompt(stream, prompts[0 if block == 0 else 1])
        latents += [made.latents.float().cpu() for made in generator.generate([stream])]
    generator.write_context([stream])
    generator.close(stream)
    return torch.cat(latents).unsqueeze(0)
