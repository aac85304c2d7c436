"""The memory that a model needs, counted without allocating it."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from engines.cache.window import WindowLayout
from engines.config.model import ModelConfig
from engines.loading.model import build_vae
from engines.text.umt5 import UMT5Encoder
from engines.wan.transformer import CausalTransformer


@cache
def memory_needed(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of the networks in `dtype` and of one stream's KV slab. Allocates nothing."""
    return sum(parameter_bytes(config, dtype)) + WindowLayout.of(config.transformer, config.stream).nbytes(dtype)


class ModelBytes(NamedTuple):
    """What the parameters of each network take."""

    transformer: int
    codec: int
    text_encoder: int


def parameter_bytes(config: ModelConfig, dtype: torch.dtype) -> ModelBytes:
    """The memory that a model's parameters need in `dtype`, network by network."""
    with torch.device("meta"):
        networks = (
            CausalTransformer(config.transformer), build_vae(config.vae), UMT5Encoder(config.text_encoder)
        )  # fmt: skip
    return ModelBytes(*(sum(p.numel() for p in network.parameters()) * dtype.itemsize for network in networks))
