"""Configurations of models and streams: frozen, and validated when they are built."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from engines.errors import ConfigError

SPATIAL_FACTOR = 8
"""Pixels per latent, along height and along width."""

TEMPORAL_FACTOR = 4
"""Pixel frames per latent frame, except for the first latent frame of a stream, which is one."""

FRAMES_PER_SECOND = 16
"""Pixel frames of a second."""

PATCH = 2
"""Latents per token, along height and along width."""

ABSOLUTE_POSITIONS = 1024
"""Frame positions that LongLive's table of absolute RoPE angles holds."""


def pixel_frames(latent_frames: int) -> int:
    """Pixel frames that the first `latent_frames` of a stream decode to."""
    return 0 if latent_frames == 0 else 1 + TEMPORAL_FACTOR * (latent_frames - 1)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        _require(value >= 1, f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the causal Wan2.1 transformer."""

    dim: int
    layers: int
    heads: int
    ffn_dim: int
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    latent_channels: int = 16
    eps: float = 1e-6

    def __post_init__(self) -> None:
        _require_positive(
            dim=self.dim, layers=self.layers, heads=self.heads, ffn_dim=self.ffn_dim, freq_dim=self.freq_dim,
            text_dim=self.text_dim, text_len=self.text_len, latent_channels=self.latent_channels,
        )  # fmt: skip
        _require(self.dim % self.heads == 0, f"dim {self.dim} is not a multiple of heads {self.heads}")
        _require(self.head_dim % 2 == 0, f"head dim {self.head_dim} is odd; RoPE turns pairs of channels")
        _require(self.head_dim >= 6, f"head dim {self.head_dim} is below 6; RoPE needs a pair for each axis")
        _require(self.freq_dim % 2 == 0, f"freq_dim {self.freq_dim} is odd; it holds cosines and sines")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.heads


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
        _require_positive(dim=self.dim, residual_blocks=self.residual_blocks)
        _require(self.dim % 2 == 0, f"dim {self.dim} is odd; upsampling halves the channels")
        _require(
            len(self.latent_mean) == len(self.latent_std),
            f"{len(self.latent_mean)} latent means but {len(self.latent_std)} standard deviations",
        )
        _require(min(self.latent_std) > 0, f"latent std {min(self.latent_std)} is not positive")

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
        _require_positive(
            **{f"decoder_widths[{i}]": width for i, width in enumerate(self.decoder_widths)},
            encoder_width=self.encoder_width, latent_channels=self.latent_channels,
        )  # fmt: skip
        _require(self.patch in (1, 2, 4, 8), f"patch is {self.patch}; it must be 1, 2, 4 or 8")

    @property
    def scales(self) -> tuple[int, int, int]:
        """By how much the decoder's three stages, from the latents on, enlarge the pictures."""
        return (2 if self.patch < 8 else 1, 2 if self.patch < 4 else 1, 2 if self.patch < 2 else 1)


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the UMT5 encoder; the defaults are UMT5-XXL."""

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

    def __post_init__(self) -> None:
        _require_positive(
            vocab=self.vocab, dim=self.dim, layers=self.layers, heads=self.heads, head_dim=self.head_dim,
            ffn_dim=self.ffn_dim, text_len=self.text_len,
        )  # fmt: skip
        _require(
            self.buckets >= 4 and self.buckets % 4 == 0,
            f"buckets is {self.buckets}; half of them look back, half of those are exact: a multiple of 4",
        )
        _require(
            self.max_distance > self.buckets // 4,
            f"max_distance {self.max_distance} is not above the {self.buckets // 4} exact buckets",
        )


@dataclass(frozen=True)
class StreamConfig:
    """How one stream is generated. Lengths are latent frames, sizes are pixels.

    `window_frames` counts the sink, the recent past and the block itself. `sink` says what a prompt switch does
    to the frame sink once the window is full: "global" keeps it as it was, "local" rewrites it with the oldest
    frames of the window. `rope` "relative" is endless; "absolute" is LongLive's published setting and ends with
    its table of positions. `steps` are the denoising steps on the scale 1000 (noise) to 1, before the flow
    `shift` warps them.
    """

    seed: int = 0
    height: int = 480
    width: int = 832
    block_frames: int = 3
    window_frames: int = 12
    sink_frames: int = 3
    sink: Literal["global", "local"] = "global"
    rope: Literal["relative", "absolute"] = "relative"
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 1 << 64, f"seed {self.seed} is outside 0..2^64-1")
        self._check_size()
        self._check_window()
        self._check_steps()

    def _check_size(self) -> None:
        multiple = SPATIAL_FACTOR * PATCH
        for name, pixels in (("height", self.height), ("width", self.width)):
            _require(
                pixels >= multiple and pixels % multiple == 0,
                f"{name} {pixels} is not a positive multiple of {multiple}, the pixels of a token",
            )

    def _check_window(self) -> None:
        _require_positive(block_frames=self.block_frames, window_frames=self.window_frames)
        for name, frames in (("window_frames", self.window_frames), ("sink_frames", self.sink_frames)):
            _require(
                frames >= 0 and frames % self.block_frames == 0,
                f"{name} {frames} is not a multiple of the block, {self.block_frames} latent frames",
            )
        _require(
            self.sink_frames + self.block_frames <= self.window_frames,
            f"sink_frames {self.sink_frames} leaves no room for a block of {self.block_frames} "
            f"in window_frames {self.window_frames}",
        )
        _require(self.sink in ("global", "local"), f"sink {self.sink!r} is neither 'global' nor 'local'")
        _require(self.rope in ("relative", "absolute"), f"rope {self.rope!r} is neither 'relative' nor 'absolute'")

    def _check_steps(self) -> None:
        _require(len(self.steps) >= 1, "steps is empty; at least one denoising step is needed")
        _require(all(1 <= step <= 1000 for step in self.steps), f"steps {self.steps} are not all within 1..1000")
        _require(all(a > b for a, b in pairwise(self.steps)), f"steps {self.steps} are not descending")
        _require(self.shift > 0, f"shift {self.shift} is not positive")

    @property
    def rows(self) -> int:
        """Tokens along the height of a latent frame."""
        return self.height // (SPATIAL_FACTOR * PATCH)

    @property
    def columns(self) -> int:
        """Tokens along the width of a latent frame."""
        return self.width // (SPATIAL_FACTOR * PATCH)

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        return self.block_frames * self.rows * self.columns

    def latent_shape(self, channels: int) -> tuple[int, int, int, int]:
        """Of a block's latents: frames, channels, height, width."""
        return self.block_frames, channels, self.height // SPATIAL_FACTOR, self.width // SPATIAL_FACTOR

    @property
    def window_blocks(self) -> int:
        """Blocks in a full window, sink included."""
        return self.window_frames // self.block_frames

    @property
    def sink_blocks(self) -> int:
        """Blocks in the frame sink."""
        return self.sink_frames // self.block_frames


@dataclass(frozen=True)
class ModelConfig:
    """The networks that make one model, and how its streams run unless told otherwise."""

    name: str
    transformer: TransformerConfig
    codec: VAEConfig | TAEHVConfig
    text_encoder: TextEncoderConfig
    stream: StreamConfig

    def __post_init__(self) -> None:
        latent, coded = self.transformer.latent_channels, self.codec.latent_channels
        _require(latent == coded, f"the transformer makes {latent} latent channels, the codec reads {coded}")
        rows, taken = self.text_encoder.dim, self.transformer.text_dim
        _require(rows == taken, f"the text encoder makes {rows} channels, the transformer reads {taken}")
        length, read = self.text_encoder.text_len, self.transformer.text_len
        _require(length <= read, f"prompts of {length} tokens do not fit the transformer's {read}")
