"""From a model and what is asked of it to a generator of video streams on one device."""

from __future__ import annotations

from typing import NamedTuple

from engines.config.model import ModelConfig
from engines.config.video_stream import VideoStreamConfig
from engines.errors import ConfigError
from engines.loading.model import Model
from engines.streaming.builder import EngineConfig, build_generator
from engines.streaming.generator import Generator
from engines.vae.taehv import TAEHV
from engines.video.generator import VideoGenerator
from engines.video.input import InputEncoder
from engines.video.warmup import restyle_full_window


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
    encoder, stream = build_input_encoder(model), config.video or config.stream
    assert isinstance(stream, VideoStreamConfig)

    def exercise(generator: Generator, config: EngineConfig) -> None:
        restyle_full_window(VideoGenerator(generator), encoder, stream, config.batch)

    return VideoEngine(encoder, VideoGenerator(build_generator(model, config, exercise=exercise)))


def build_input_encoder(model: Model) -> InputEncoder:
    """What encodes pictures for the model's transformer, beside it. Raises ConfigError for a tiny autoencoder."""
    if isinstance(model.encoder, TAEHV):
        raise ConfigError("a tiny autoencoder decodes alone: latents to be restyled are the model's own encoder's")
    return InputEncoder(model.encoder, model.transformer.device, model.transformer.dtype)
