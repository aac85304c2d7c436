"""Sizes of the networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engines.config.quantization import QuantizationConfig
from engines.config.validation import require, require_positive


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the causal Wan2.1 transformer.

    With `fp32_time` modulations are computed in fp32 whatever the weights are in, and rounded once (Wan2.1, rCM);
    LongLive was distilled with all of it in the weights' dtype. `position_grid`, if it has one, is the frames of a
    block, rows and columns for which it has learned vectors of its own, added to the patches. `quantization` says
    which layers hold 8 bits, if any.
    """

    dim: int
    layers: int
    heads: int
    ffn_dim: int
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    latent_channels: int = 16
    eps: float = 1e-6
    fp32_time: bool = False
    position_grid: tuple[int, int, int] | None = None
    quantization: QuantizationConfig | None = None

    def __post_init__(self) -> None:
        require_positive(
            dim=self.dim, layers=self.layers, heads=self.heads, ffn_dim=self.ffn_dim, freq_dim=self.freq_dim,
            text_dim=self.text_dim, text_len=self.text_len, latent_channels=self.latent_channels,
        )  # fmt: skip
        require(self.dim % self.heads == 0, f"dim {self.dim} is not a multiple of heads {self.heads}")
        require(self.head_dim % 2 == 0, f"head dim {self.head_dim} is odd; RoPE turns pairs of channels")
        require(self.head_dim >= 6, f"head dim {self.head_dim} is below 6; RoPE needs a pair for each axis")
        require(
            self.position_grid is None or min(self.position_grid) >= 1,
            f"position_grid is {self.position_grid}; frames, rows and columns must be at least 1",
        )
        require(self.freq_dim % 2 == 0, f"freq_dim {self.freq_dim} is odd; it holds cosines and sines")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.heads

    @property
    def frame_channels(self) -> int:
        """Channels of a head that RoPE turns with the frame: what rows and columns, a third each, leave."""
        return self.head_dim - 4 * (self.head_dim // 6)


# Wan-AI/Wan2.1, wan/modules/vae.py: per-channel statistics of the latents.
WAN_LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip


WAN_LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the Wan2.1 VAE. Its four levels halve height and width three times."""

    dim: int = 96
    multipliers: tuple[int, int, int, int] = (1, 2, 4, 4)
    residual_blocks: int = 2
    latent_mean: tuple[float, ...] = WAN_LATENT_MEAN
    latent_std: tuple[float, ...] = WAN_LATENT_STD

    def __post_init__(self) -> None:
        require_positive(dim=self.dim, residual_blocks=self.residual_blocks)
        require(self.dim % 2 == 0, f"dim {self.dim} is odd; upsampling halves the channels")
        require(
            len(self.latent_mean) == len(self.latent_std),
            f"{len(self.latent_mean)} latent means but {len(self.latent_std)} standard deviations",
        )
        require(min(self.latent_std) > 0, f"latent std {min(self.latent_std)} is not positive")

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""
        return len(self.latent_mean)


@dataclass(frozen=True)
class TAEHVConfig:
    """Sizes of a tiny autoencoder of the TAEHV kind; the defaults are `taew2_1`.

    `decoder_widths` are the channels at latent resolution and after each doubling; `encoder_width` is the
    same at every resolution. `patch` pixels along each side are folded into the channels of the outermost layers,
    as in `taew2_2`; what remains of the factor of 8 is left to the stages next to the latents.
    """

    decoder_widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    encoder_width: int = 64
    latent_channels: int = 16
    patch: Literal[1, 2, 4, 8] = 1

    def __post_init__(self) -> None:
        require_positive(
            **{f"decoder_widths[{i}]": width for i, width in enumerate(self.decoder_widths)},
            encoder_width=self.encoder_width, latent_channels=self.latent_channels,
        )  # fmt: skip
        require(self.patch in (1, 2, 4, 8), f"patch is {self.patch}; it must be 1, 2, 4 or 8")

    @property
    def scales(self) -> tuple[int, int, int]:
        """By how much the decoder's three stages, from the latents on, enlarge the pictures."""
        return (2 if self.patch < 8 else 1, 2 if self.patch < 4 else 1, 2 if self.patch < 2 else 1)


@dataclass(frozen=True)
class PatchVAEConfig:
    """Sizes of an autoencoder over patches of 8x8 pixels x 4 frames.

    `encoder_widths` are the channels at twice the latents' resolution and at it; `decoder_widths` those at it, at
    twice and at four times it.
    """

    encoder_widths: tuple[int, int] = (64, 96)
    decoder_widths: tuple[int, int, int] = (128, 64, 32)
    latent_channels: int = 16

    def __post_init__(self) -> None:
        require_positive(
            **{f"encoder_widths[{i}]": width for i, width in enumerate(self.encoder_widths)},
            **{f"decoder_widths[{i}]": width for i, width in enumerate(self.decoder_widths)},
            latent_channels=self.latent_channels,
        )  # fmt: skip


AutoencoderConfig = VAEConfig | TAEHVConfig | PatchVAEConfig
"""Of any autoencoder that a model can have."""


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the UMT5 encoder; the defaults are UMT5-XXL.

    With `int8_weights` its linear layers keep them in 8 bits, and compute as before.
    """

    vocab: int = 256384
    dim: int = 4096
    layers: int = 24
    heads: int = 64
    head_dim: int = 64
    ffn_dim: int = 10240
    buckets: int = 32
    max_distance: int = 128
    text_len: int = 512
    eps: float = 1e-6
    int8_weights: bool = False

    def __post_init__(self) -> None:
        require_positive(
            vocab=self.vocab, dim=self.dim, layers=self.layers, heads=self.heads, head_dim=self.head_dim,
            ffn_dim=self.ffn_dim, text_len=self.text_len,
        )  # fmt: skip
        require(
            self.buckets >= 4 and self.buckets % 4 == 0,
            f"buckets is {self.buckets}; half of them look back, half of those are exact: a multiple of 4",
        )
        require(
            self.max_distance > self.buckets // 4,
            f"max_distance {self.max_distance} is not above the {self.buckets // 4} exact buckets",
        )
