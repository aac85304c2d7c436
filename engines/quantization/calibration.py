"""A transformer's inputs, watched while it makes videos as it will be asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engines.config.stream import StreamConfig
from engines.config.validation import require
from engines.config.video_stream import AnyStreamConfig, VideoStreamConfig
from engines.errors import ConfigError
from engines.loading.model import Model
from engines.quantization.inputs import InputStatistics, watched
from engines.streaming.builder import EngineConfig, build_generator
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt
from engines.video.builder import build_input_encoder
from engines.video.generator import VideoGenerator

LEAST_BLOCKS = 2
"""A prompt is followed for a block at least, and another one from the next block on."""


Footage = Callable[[int], Tensor]
"""Pictures [frames, height, width, 3] uint8 for the stream of each prompt, by its number: at least its frames."""


def calibrate(
    model: Model,
    prompts: Sequence[Prompt],
    stream: AnyStreamConfig,
    blocks: int,
    made: Callable[[int], None] = lambda _: None,
    *,
    moments: bool = True,
    footage: Footage | None = None,
) -> InputStatistics:
    """Statistics of a stream of `blocks` for each of `prompts`, every timestep and clean pass included.

    The last two blocks of a stream follow the next prompt, so a KV recache is seen as well. Passes run where the
    transformer is, in its dtype; `made` is told how many blocks are done. Without `moments` there are only maxima.
    Streams that restyle a video restyle `footage`, by the encoder of the model.
    """
    with watched(model.transformer, model.config.transformer, moments=moments) as statistics:
        for number, _ in enumerate(rollouts(model, prompts, stream, blocks, footage)):
            made((number + 1) * blocks)
    return statistics


def rollouts(
    model: Model, prompts: Sequence[Prompt], stream: AnyStreamConfig, blocks: int, footage: Footage | None = None
) -> Iterator[Tensor]:
    """Streams as `calibrate` watches them, one for each prompt: latents [1, frames, ...] fp32 on the CPU."""
    require(len(prompts) >= 1, "there are no prompts to calibrate with")
    require(blocks >= LEAST_BLOCKS, f"blocks is {blocks}; it must be at least {LEAST_BLOCKS}")
    # An exercise to see what memory it takes would be watched, too.
    generator = build_generator(model, EngineConfig(stream, decodes=False), exercise=lambda *_: None)
    following = [*prompts[1:], prompts[0]]
    try:
        for number, (first, second) in enumerate(zip(prompts, following, strict=True)):
            begins = {0: first, max(1, blocks - 2): second}
            if isinstance(stream, StreamConfig):
                yield _roll_out(generator, replace(stream, seed=number), begins, blocks)
            else:
                if footage is None:
                    raise ConfigError("a stream that restyles a video is calibrated with pictures of one")
                pictures = footage(number)
                yield _restyle(model, generator, replace(stream, seed=number), begins, blocks, pictures)
    finally:
        generator.release()


def _roll_out(generator: Generator, config: StreamConfig, begins: Mapping[int, Prompt], blocks: int) -> Tensor:
    """`begins` has the prompts that come into force, by their blocks."""
    stream, latents = generator.open(config), list[Tensor]()
    for block in range(blocks):
        if block in begins:
            generator.set_prompt(stream, begins[block])
        latents += [made.latents.float().cpu() for made in generator.generate([stream])]
    generator.write_context([stream])
    generator.close(stream)
    return torch.cat(latents).unsqueeze(0)


def _restyle(
    model: Model, generator: Generator, config: VideoStreamConfig, begins: Mapping[int, Prompt], blocks: int,
    pictures: Tensor,
) -> Tensor:  # fmt: skip
    video, encoder = VideoGenerator(generator), build_input_encoder(model)
    stream, state, latents = video.open(replace(config, loop="plain")), encoder.start(config), list[Tensor]()
    lengths = [config.blocks.pixel_frames_of(block) for block in range(blocks)]
    for block, shown in enumerate(pictures[: sum(lengths)].split(lengths)):
        if block in begins:
            video.set_prompt(stream, begins[block])
        inputs, state = encoder.encode(config, shown, state)
        latents += [made.latents.float().cpu() for made in video.generate([stream], inputs) if made is not None]
    video.close(stream)
    return torch.cat(latents).unsqueeze(0)
