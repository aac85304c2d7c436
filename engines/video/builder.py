"""From a model and what is asked of it to a generator of video streams on one device."""

from __future__ import annotations

from typing import NamedTuple

import torch

from engines.config.model import ModelConfig
from engines.config.video_stream import VideoStreamConfig
from engines.errors import ConfigError
from engines.loading.model import Model
from engines.streaming.builder import EngineConfig, build_generator
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt
from engines.vae.taehv import TAEHV
from engines.video.generator import VideoGenerator
from engines.video.input import BlockInput, InputEncoder


class VideoEngine(NamedTuple):
    """What restyles videos: an encoder of their pictures, and a generator of blocks from what that makes."""

    encoder: InputEncoder
    generator: VideoGenerator


def require_video(config: ModelConfig) -> VideoStreamConfig:
    """How a model restyles a video. Raises ConfigError if it does not."""
    if config.video is None:
        raise ConfigError(f"{config.name} makes videos from prompts alone; choose a model that restyles one")
    return config.video


def build_video_engine(model: Model, config: EngineConfig) -> VideoEngine:
    """An engine with room for the video sessions of `config`: see `engines.streaming.builder.build_generator`."""
    if isinstance(model.encoder, TAEHV):
        raise ConfigError("a tiny autoencoder decodes alone: latents to be restyled are the model's own encoder's")
    device, dtype = model.transformer.device, model.transformer.dtype
    encoder = InputEncoder(model.encoder, device, dtype)

    def exercise(generator: Generator, _: EngineConfig) -> None:
        restyle_full_window(VideoGenerator(generator), encoder, config)

    return VideoEngine(encoder, VideoGenerator(build_generator(model, config, exercise=exercise)))


def restyle_full_window(video: VideoGenerator, encoder: InputEncoder, config: EngineConfig) -> None:
    """All that video streams do, once: a first block, passes over a full window, a flush, and decoding them."""
    stream = config.stream
    assert isinstance(stream, VideoStreamConfig)
    streams = [video.open(stream) for _ in range(config.batch)]
    for opened in streams:
        video.set_prompt(opened, Prompt("", torch.ones(1, video.beside.config.text_dim)))
    state = encoder.start(stream)
    for number in range(stream.blocks.blocks_of(stream.window_frames) + len(stream.steps) + 1):
        frames = stream.blocks.pixel_frames_of(number)
        made = encoder.encode(
            stream, torch.zeros(frames, stream.height, stream.width, 3, dtype=torch.uint8), state
        )
        state = made.after
        inputs: list[BlockInput] = made.inputs * len(streams)
        for opened, block in zip(streams, video.generate(streams, inputs), strict=True):
            if block is not None and config.decodes:
                video.decode(opened, block)
    for opened in streams:
        for block in video.flush(opened):
            if config.decodes:
                video.decode(opened, block)
        video.close(opened)
