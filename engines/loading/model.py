"""The networks of one model, built from its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from engines.config.model import ModelConfig
from engines.config.networks import TAEHVConfig, VAEConfig
from engines.text.umt5 import UMT5Encoder
from engines.vae.protocol import StreamingVAE
from engines.vae.taehv import TAEHV
from engines.vae.wan_vae import WanVAE
from engines.wan.transformer import CausalTransformer


@dataclass(frozen=True)
class Model:
    """A model's networks, in evaluation mode. The text encoder may be on a device of its own."""

    config: ModelConfig
    transformer: CausalTransformer
    codec: StreamingVAE
    text_encoder: UMT5Encoder

    @classmethod
    def random(
        cls, config: ModelConfig, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """The networks with random weights that follow from `seed`: to test and to measure with."""
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            transformer = CausalTransformer(config.transformer)
            codec = build_vae(config.vae)
            _init_visible(codec)
            text_encoder = UMT5Encoder(config.text_encoder)
        for network in (transformer, codec, text_encoder):
            network.to(device, dtype).eval()
        return cls(config, transformer, codec, text_encoder)


def build_vae(config: VAEConfig | TAEHVConfig) -> WanVAE | TAEHV:
    """The autoencoder that `config` describes."""
    return WanVAE(config) if isinstance(config, VAEConfig) else TAEHV(config)


def _init_visible(codec: nn.Module) -> None:
    """Weights large enough that random pictures are neither gray nor black."""
    for layer in codec.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
