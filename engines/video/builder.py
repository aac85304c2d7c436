"""From a model and what is asked of it to a generator of video streams on one device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from engines.config.model import ModelConfig
from engines.config.video_stream import VideoStreamConfig
from engines.device.event_timer import Lap
from engines.device.idle import wait_until_idle
from engines.errors import ConfigError
from engines.loading.model import Model
from engines.streaming.builder import EngineConfig, build_generator
from engines.streaming.generator import Generator
from engines.streaming.warmup import TIMED
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
    encoder = build_input_encoder(model)

    def exercise(generator: Generator, _: EngineConfig) -> None:
        restyle_full_window(VideoGenerator(generator), encoder, config)

    return VideoEngine(encoder, VideoGenerator(build_generator(model, config, exercise=exercise)))


def build_input_encoder(model: Model) -> InputEncoder:
    """What encodes pictures for the model's transformer, beside it. Raises ConfigError for a tiny autoencoder."""
    if isinstance(model.encoder, TAEHV):
        raise ConfigError("a tiny autoencoder decodes alone: latents to be restyled are the model's own encoder's")
    return InputEncoder(model.encoder, model.transformer.device, model.transformer.dtype)


def block_seconds(video: VideoGenerator, encoder: InputEncoder, stream: VideoStreamConfig) -> float:
    """How long a block takes with the encoding of its pictures, the window full: the least of several.

    To be called on a generator that is warm and does nothing else. Raises PoolFull if there is no room.
    """
    opened, state, times = video.open(stream), encoder.start(stream), list[float]()
    try:
        video.set_prompt(opened, Prompt("", torch.ones(1, video.beside.config.text_dim)))
        for number in range(stream.blocks.blocks_of(stream.window_frames) + TIMED):
            lap = Lap(video.beside.cache.device)
            made = encoder.encode(stream, _blank(stream, number), state)
            state = made.after
            video.generate([opened], made.inputs)
            lap.stop()
            wait_until_idle(video.beside.cache.device)
            times.append(lap.seconds or 0.0)
    finally:
        video.close(opened)
    return min(times[-TIMED:])


def _blank(stream: VideoStreamConfig, block: int) -> Tensor:
    frames = stream.blocks.pixel_frames_of(block)
    return torch.zeros(frames, stream.height, stream.width, 3, dtype=torch.uint8)


def restyle_full_window(video: VideoGenerator, encoder: InputEncoder, config: EngineConfig) -> None:
    """All that video streams do, once: a first block, passes over a full window, a flush, and decoding them."""
    stream = config.video or config.stream
    assert isinstance(stream, VideoStreamConfig)
    streams = [video.open(stream) for _ in range(config.batch)]
    for opened in streams:
        video.set_prompt(opened, Prompt("", torch.ones(1, video.beside.config.text_dim)))
    state = encoder.start(stream)
    for number in range(stream.blocks.blocks_of(stream.window_frames) + len(stream.steps) + 1):
        made = encoder.encode(stream, _blank(stream, number), state)
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
