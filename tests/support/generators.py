"""Generators with room enough for a test."""

from __future__ import annotations

import torch

from engines.cache.kv_cache import CacheLayout, CacheSize, KVCache, cache_size
from engines.config.stream import StreamConfig
from engines.config.video_stream import VideoStreamConfig
from engines.loading.model import Model
from engines.runner.eager import EagerRunner
from engines.runner.protocol import ModelRunner
from engines.streaming.generator import Generator
from engines.vae.protocol import StreamingVAE
from engines.wan.transformer import CausalTransformer

ROOM = CacheSize(window=1 << 15, raw=1 << 13, prompts=1 << 13, means=1 << 7, records=1 << 8)
"""For a dozen small streams."""


def generator_for(
    model: Model,
    *,
    sessions: int | None = None,
    config: StreamConfig | VideoStreamConfig | None = None,
    batch: int = 1,
    kept_frames: int = 0,
) -> Generator:
    """Generates and decodes; with room for exactly `sessions` streams of `config` if that is said."""
    size = (
        ROOM if sessions is None else cache_size(sessions, config or model.config.stream, model.config.transformer)
    )
    return denoiser_for(
        model.transformer, model.vae, size=size, batch=batch, kept_frames=kept_frames, identity=model.identity
    )


def denoiser_for(
    transformer: CausalTransformer,
    vae: StreamingVAE | None = None,
    *,
    runner: ModelRunner | None = None,
    size: CacheSize = ROOM,
    batch: int = 1,
    kept_frames: int = 0,
    identity: dict[str, str] | None = None,
) -> Generator:
    """Generates; decodes too if there is a `vae`."""
    runner = EagerRunner(transformer) if runner is None else runner
    layout = CacheLayout.of(transformer.config, transformer.dtype, runner.kv_format)
    cache = KVCache(layout, size, torch.device(transformer.device))
    return Generator(runner, vae, cache, kept_frames=kept_frames, batch=batch, identity=identity)
