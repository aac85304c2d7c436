"""The networks of one model, built from its config."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, Self, get_args

import torch
from torch import nn

from engines.config.model import ModelConfig
from engines.config.networks import AutoencoderConfig, PatchVAEConfig, TAEHVConfig, VAEConfig
from engines.errors import ConfigError
from engines.loading.fingerprint import fingerprint
from engines.text.umt5 import UMT5Encoder
from engines.vae.patch_vae import PatchVAE
from engines.vae.taehv import TAEHV
from engines.vae.wan_vae import WanVAE
from engines.wan.transformer import CausalTransformer

if TYPE_CHECKING:
    from engines.loading.lora import LoRAFile

Network = Literal["transformer", "codec", "text_encoder"]

NETWORKS: tuple[Network, ...] = get_args(Network)
"""All that make a model."""


@dataclass(frozen=True)
class Model:
    """A model's networks, in evaluation mode. The text encoder may be on a device of its own.

    `vae` decodes; `encoder` encodes, and is the same network unless the config has another one. Each network may
    be left out, and is asked for in vain then: ConfigError. `identity` has the fingerprints of those that are here
    and on which a stream's results depend, taken before anything is fused; as `loras` what was merged, and as
    `quantization` how the transformer is quantized.
    """

    config: ModelConfig
    identity: dict[str, str]
    _transformer: CausalTransformer | None
    _vae: Autoencoder | None
    _text_encoder: UMT5Encoder | None
    _encoder: Autoencoder | None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        transformer: CausalTransformer | None = None,
        vae: Autoencoder | None = None,
        text_encoder: UMT5Encoder | None = None,
        encoder: Autoencoder | None = None,
        loras: Sequence[str] = (),
    ) -> Self:
        """The networks as they have been loaded. `encoder` is None where `vae` encodes too.

        `loras` are marks of what has been merged into the transformer.
        """
        for codec in (vae, encoder):
            if codec is not None:
                codec.prepare()
        marked = {"transformer": transformer, "codec": vae, "encoder": encoder}
        identity = dict[str, str]()
        if transformer is not None and config.transformer.quantization is not None:
            identity["quantization"] = str(config.transformer.quantization)
        identity |= {name: fingerprint(network) for name, network in marked.items() if network is not None}
        if transformer is not None and loras:
            identity["loras"] = ", ".join(loras)
        return cls(config, identity, transformer, vae, text_encoder, encoder or vae)

    @property
    def transformer(self) -> CausalTransformer:
        """The denoiser's network."""
        if self._transformer is None:
            raise _absent("transformer")
        return self._transformer

    @property
    def vae(self) -> Autoencoder:
        """The codec."""
        if self._vae is None:
            raise _absent("codec")
        return self._vae

    @property
    def encoder(self) -> Autoencoder:
        """What makes latents of pixels."""
        if self._encoder is None:
            raise _absent("codec")
        return self._encoder

    @property
    def reads_text(self) -> bool:
        """Whether the text encoder is here."""
        return self._text_encoder is not None

    @property
    def text_encoder(self) -> UMT5Encoder:
        """What makes prompts of tokens."""
        if self._text_encoder is None:
            raise _absent("text encoder")
        return self._text_encoder

    @classmethod
    def random(
        cls,
        config: ModelConfig,
        seed: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        networks: Collection[Network] = NETWORKS,
        loras: Sequence[LoRAFile] = (),
    ) -> Self:
        """The networks with random weights that follow from `seed`: to test and to measure with."""
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            transformer = CausalTransformer(config.transformer)
            vae = build_vae(config.vae)
            _init_visible(vae)
            # The largest of all, and the last to be drawn: the others are the same without it.
            text_encoder = UMT5Encoder(config.text_encoder) if "text_encoder" in networks else None
        merged = _merge(transformer, loras) if "transformer" in networks and loras else ()
        for network in (transformer, vae, text_encoder):
            if network is not None:
                network.to(device, dtype).eval()
        return cls.of(
            config,
            transformer if "transformer" in networks else None,
            vae if "codec" in networks else None,
            text_encoder,
            loras=merged,
        )


@torch.no_grad()
def _merge(transformer: CausalTransformer, loras: Sequence[LoRAFile]) -> tuple[str, ...]:
    """Their marks."""
    # Reading files takes libraries that benchmarks of random weights do without.
    from engines.loading.lora import LoRA, marks, merging

    adapt = merging([LoRA.open(file, transformer) for file in loras], transformer)
    for name, parameter in transformer.named_parameters():
        parameter.copy_(adapt(name, parameter))
    return marks(loras)


def _absent(network: str) -> ConfigError:
    return ConfigError(f"the {network} has not been loaded in this process")


Autoencoder = WanVAE | TAEHV | PatchVAE


def build_vae(config: AutoencoderConfig) -> Autoencoder:
    """The autoencoder that `config` describes."""
    match config:
        case VAEConfig():
            return WanVAE(config)
        case TAEHVConfig():
            return TAEHV(config)
        case PatchVAEConfig():
            return PatchVAE(config)


@cache
def decoder_receptive_field(config: AutoencoderConfig) -> int:
    """Latent frames after which nothing older can be seen in a decoder's cache, where it is not loaded."""
    with torch.device("meta"):
        return build_vae(config).decoder_receptive_field


def _init_visible(vae: nn.Module) -> None:
    """Weights large enough that random pictures are neither gray nor black."""
    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
