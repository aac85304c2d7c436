"""The networks of one model, built from its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from engines.config.model import ModelConfig
from engines.config.networks import TAEHVConfig, VAEConfig
from engines.loading.fingerprint import fingerprint
from engines.text.umt5 import UMT5Encoder
from engines.vae.taehv import TAEHV
from engines.vae.wan_vae import WanVAE
from engines.wan.transformer import CausalTransformer


@dataclass(frozen=True)
class Model:
    """A model's networks, in evaluation mode. The text encoder may be on a device of its own.

    `vae` decodes; `encoder` encodes, and is the same network unless the config has another one.

    `identity` has the fingerprints of those on which a stream's results depend, taken before anything is fused.
    """

    config: ModelConfig
    transformer: CausalTransformer
    vae: WanVAE | TAEHV
    text_encoder: UMT5Encoder
    identity: dict[str, str]
    encoder: WanVAE | TAEHV

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        transformer: CausalTransformer,
        vae: WanVAE | TAEHV,
        text_encoder: UMT5Encoder,
        encoder: WanVAE | TAEHV | None = None,
    ) -> Self:
        """The networks as they have been loaded."""
        identity = {"transformer": fingerprint(transformer), "codec": fingerprint(vae)}
        if encoder is not None:
            identity["encoder"] = fingerprint(encoder)
        return cls(config, transformer, vae, text_encoder, identity, encoder or vae)

    @classmethod
    def random(
        cls, config: ModelConfig, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """The networks with random weights that follow from `seed`: to test and to measure with."""
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            transformer = CausalTransformer(config.transformer)
            vae = build_vae(config.vae)
            _init_visible(vae)
            text_encoder = UMT5Encoder(config.text_encoder)
        for network in (transformer, vae, text_encoder):
            network.to(device, dtype).eval()
        return cls.of(config, transformer, vae, text_encoder)


def build_vae(config: VAEConfig | TAEHVConfig) -> WanVAE | TAEHV:
    """The autoencoder that `config` describes."""
    return WanVAE(config) if isinstance(config, VAEConfig) else TAEHV(config)


def _init_visible(vae: nn.Module) -> None:
    """Weights large enough that random pictures are neither gray nor black."""
    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
