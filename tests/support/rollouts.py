"""Rolling a stream out in a test."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engines.streaming.generator import Generator
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt


def roll(generator: Generator, stream: Stream, blocks: int, switches: Mapping[int, Prompt]) -> Tensor:
    """Latents of the stream's next `blocks` blocks; `switches` has the prompts that begin at a block."""
    made: list[Tensor] = []
    for _ in range(blocks):
        if stream.blocks in switches:
            generator.set_prompt(stream, switches[stream.blocks])
        made.extend(block.latents for block in generator.generate([stream]))
    return torch.cat(made)


def roll_pictures(
    generator: Generator, stream: Stream, blocks: int, switches: Mapping[int, Prompt]
) -> tuple[Tensor, Tensor]:
    """Latents, and pictures [frames, height, width, 3] uint8."""
    latents, pictures = [], []
    for _ in range(blocks):
        if stream.blocks in switches:
            generator.set_prompt(stream, switches[stream.blocks])
        (block,) = generator.generate([stream])
        latents.append(block.latents)
        pictures.append(generator.decode(stream, block))
    return torch.cat(latents), torch.cat(pictures)
