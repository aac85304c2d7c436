"""Rolling a video stream out in a test."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engines.config.video_stream import VideoStreamConfig
from engines.text.prompt import Prompt
from engines.video.generator import VideoGenerator
from engines.video.input import BlockInput
from engines.video.stream import VideoStream


def block_input(config: VideoStreamConfig, number: int, seed: int = 0, opening: int = 0) -> BlockInput:
    """Of a block, from latents that stand for its pictures, in a stream that opened with block `opening`."""
    draw = torch.Generator().manual_seed(1000 * seed + number)
    latents = torch.randn(config.latent_shape(16, config.blocks.frames_of(number, opening)), generator=draw)
    return BlockInput(number, latents, 0.75 - 0.01 * (number % 4), 640 - 10 * (number % 4))


def roll_video(
    video: VideoGenerator, stream: VideoStream, blocks: int, switches: Mapping[int, Prompt], seed: int = 0
) -> list[Tensor]:
    """Latents of what comes out while so many blocks begin; `switches` has the prompts that begin at a block."""
    made = []
    for _ in range(blocks):
        if stream.entered in switches:
            video.set_prompt(stream, switches[stream.entered])
        (block,) = video.generate([stream], [block_input(stream.config, stream.entered, seed, stream.opening)])
        made += [] if block is None else [block.latents]
    return made
