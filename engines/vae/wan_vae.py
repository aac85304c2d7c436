"""The Wan2.1 video autoencoder, run over a stream piece by piece.

The layers and the names of their parameters are those of `Wan2.1_VAE.pth` (Wan-AI/Wan2.1, Apache-2.0). Inside,
tensors are [batch, channels, frames, height, width].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from engines.config.networks import VAEConfig
from engines.vae.causal_conv import (
    CausalPad,
    StreamingLayer,
    StreamingNetwork,
    StreamingOutput,
    StreamingSequential,
    bias_of,
    convolve,
    convolve_biased,
)
from engines.vae.conv_cache import ConvCache, ConvCacheUpdate
from engines.vae.doubling_conv import DoublingConv
from engines.vae.protocol import Decoded, Encoded, check_frames, check_latents
from engines.vae.streaming_codec import StreamingCodec
from kernels.vae.frame_layout import channels_last, unstack_frames
from kernels.vae.ops import VAEOps

TIME = 2
"""The axis of the frames."""


LEAST_SQUARE = 1e-24
"""Vectors of channels count as at least this long, squared, as in torch's normalize."""


class RMSNorm(nn.Module):
    """Scales the vector of channels, axis 1, to length sqrt(channels), and each channel by `gamma`."""

    def __init__(self, channels: int, trailing_axes: int) -> None:
        super().__init__()
        self.scale = channels**0.5
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * trailing_axes))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """In the input's dtype, rounded after each factor as LongLive does."""
        if x.dtype == torch.float16:
            return self._half(x)
        return F.normalize(x, dim=1).mul_(self.scale) * self.gamma

    def _half(self, x: Tensor) -> Tensor:
        """Only lengths in fp32, whose squares fp16 does not hold: TensorRT would keep wide pictures in memory."""
        squares = x.float().square().sum(dim=1, keepdim=True)
        factor = torch.rsqrt(squares.clamp_min(LEAST_SQUARE)) * self.scale
        return x * factor.clamp_max(torch.finfo(x.dtype).max).to(x.dtype) * self.gamma


class NormSiLU(RMSNorm):
    """The norm and the activation in front of a convolution over space and time."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, trailing_axes=3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input."""
        return F.silu(super().forward(x), inplace=True)


def _past() -> CausalPad:
    """The frames that a convolution over three frames needs besides the piece itself."""
    return CausalPad(frames=2, dim=TIME)


def _conv(inputs: int, outputs: int) -> nn.Conv3d:
    """3x3x3, to be run behind a `_past()`: it pads space and not time."""
    return nn.Conv3d(inputs, outputs, kernel_size=3, padding=(0, 1, 1))


class NormedConvs(StreamingSequential):
    """Convolutions over space and time, each behind its norm and its past."""

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """The last convolution's output."""
        if self.ops is None:
            return super().forward(x, step)
        y, bias = self.run(self.ops, x, step)
        self.ops.conv_epilogue(y, bias, None, False)
        return y

    def run(self, ops: VAEOps, x: Tensor, step: ConvCacheUpdate) -> tuple[Tensor, Tensor]:
        """The last convolution's output without its bias, and that; the others' biases go into the norms."""
        layers, bias = list(self.children()), None
        for norm, past, conv in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
            assert isinstance(norm, NormSiLU)
            assert isinstance(past, CausalPad)
            assert isinstance(conv, nn.Conv3d)
            x = convolve(conv, past.join(ops, x, step, norm.gamma, bias))
            bias = bias_of(conv)
        assert bias is not None
        return x, bias


def _head(inputs: int, outputs: int) -> StreamingSequential:
    return NormedConvs({0: NormSiLU(inputs), 1: _past(), 2: _conv(inputs, outputs)})


class ResidualBlock(StreamingLayer):
    """Two convolutions over space and time beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual = NormedConvs({
            0: NormSiLU(inputs), 1: _past(), 2: _conv(inputs, outputs),
            3: NormSiLU(outputs), 5: _past(), 6: _conv(outputs, outputs),
        })  # fmt: skip
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv3d(inputs, outputs, kernel_size=1)

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """[B, inputs, T, H, W] to [B, outputs, T, H, W]."""
        y: Tensor
        if self.ops is None:
            y = self.shortcut(x) + self.residual(x, step)
        else:
            y, bias = self.residual.run(self.ops, x, step)
            self.ops.conv_epilogue(y, bias, channels_last(self.shortcut(x)), False)
        return y

    @override
    def receptive_field(self, frames: int) -> int:
        """That of the two convolutions."""
        return self.residual.receptive_field(frames)


def _per_frame(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function` of the frames [B*T, C, H, W] of [B, C, T, H, W]."""
    y = function(x.transpose(1, TIME).flatten(0, 1))
    unfolded: Tensor = y.unflatten(0, (x.shape[0], -1))
    return unfolded.transpose(1, TIME)


class Attention(nn.Module):
    """Single-head attention over the positions of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, trailing_axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.proj = nn.Conv2d(channels, channels, kernel_size=1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input, which is added to the result."""
        return x + _per_frame(self._attend, x)

    def _attend(self, frames: Tensor) -> Tensor:
        tokens = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
        attended = F.scaled_dot_product_attention(*tokens.chunk(3, dim=-1))
        y: Tensor = self.proj(attended.squeeze(1).transpose(1, 2).unflatten(2, frames.shape[2:]))
        return y


def _doubling(channels: int) -> nn.Sequential:
    # The checkpoint's sequence doubles the pictures in its first layer.
    return nn.Sequential(nn.Identity(), DoublingConv(channels, channels // 2))


def _halving(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))


class Upsample(StreamingLayer):
    """Doubles height and width and halves the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = _doubling(channels)

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """[B, C, T, H, W] to [B, C/2, T, 2H, 2W]."""
        if self.ops is None:
            return _per_frame(self.resample, x)
        return convolve_biased(self.ops, self.resample[1], channels_last(x))

    @override
    def receptive_field(self, frames: int) -> int:
        """The frames themselves."""
        return frames


class TimeUpsample(StreamingLayer):
    """Doubles the frames, then height and width, and halves the channels.

    The first frame of a stream stays one frame, and the frames after it do not see it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.past = _past()
        self.time_conv = nn.Conv3d(channels, 2 * channels, kernel_size=(3, 1, 1))
        self.resample = _doubling(channels)

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """[B, C, T, H, W] to [B, C/2, 2T, 2H, 2W]; 2T-1 frames at the start of a stream."""
        frames = self._start(x, step) if step.first else self._double(x, step)
        if self.ops is None:
            return _per_frame(self.resample, frames)
        return convolve_biased(self.ops, self.resample[1], channels_last(frames))

    def _start(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        first = x[:, :, :1]
        if x.shape[TIME] == 1:
            return first
        return torch.cat((first, self._double(x[:, :, 1:], step)), dim=TIME)

    def _double(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """[B, C, T, H, W] to [B, C, 2T, H, W]: the halves of the channels are successive frames."""
        joined = self.past(x, step)
        if self.ops is not None:
            return unstack_frames(convolve_biased(self.ops, self.time_conv, joined), 2)
        pairs: Tensor = self.time_conv(joined).unflatten(1, (2, -1))
        return pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)

    @override
    def receptive_field(self, frames: int) -> int:
        """Two outputs come from one input and those before it."""
        return self.past.receptive_field(-(-frames // 2))


class Downsample(nn.Module):
    """Halves height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = _halving(channels)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, C, T, H/2, W/2]."""
        return _per_frame(self.resample, x)


class TimeDownsample(StreamingLayer):
    """Halves height and width, then the frames. The first frame of a stream stays by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = _halving(channels)
        self.past = CausalPad(frames=1, dim=TIME)
        self.time_conv = nn.Conv3d(channels, channels, kernel_size=(3, 1, 1), stride=(2, 1, 1))

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """[B, C, 2T, H, W] to [B, C, T, H/2, W/2]; at the start of a stream 2T+1 frames become T+1."""
        small = _per_frame(self.resample, x)
        joined = self.past(small, step)
        if not step.first:
            halved: Tensor = self.time_conv(joined)
            return halved
        if small.shape[TIME] == 1:
            return small
        return torch.cat((small[:, :, :1], self.time_conv(small)), dim=TIME)


def _middle(channels: int) -> StreamingSequential:
    return StreamingSequential(
        {0: ResidualBlock(channels, channels), 1: Attention(channels), 2: ResidualBlock(channels, channels)}
    )


def _numbered(layers: list[nn.Module]) -> StreamingSequential:
    return StreamingSequential(dict(enumerate(layers)))


def _downsamples(config: VAEConfig) -> StreamingSequential:
    layers: list[nn.Module] = []
    inputs = config.dim
    for multiplier, resample in zip(
        config.multipliers, (Downsample, TimeDownsample, TimeDownsample, None), strict=True
    ):
        outputs = config.dim * multiplier
        for _ in range(config.residual_blocks):
            layers.append(ResidualBlock(inputs, outputs))
            inputs = outputs
        if resample is not None:
            layers.append(resample(outputs))
    return _numbered(layers)


def _upsamples(config: VAEConfig) -> StreamingSequential:
    layers: list[nn.Module] = []
    inputs = config.dim * config.multipliers[-1]
    resamples = (TimeUpsample, TimeUpsample, Upsample, None)
    for multiplier, resample in zip(reversed(config.multipliers), resamples, strict=True):
        outputs = config.dim * multiplier
        for _ in range(config.residual_blocks + 1):
            layers.append(ResidualBlock(inputs, outputs))
            inputs = outputs
        if resample is not None:
            layers.append(resample(outputs))
            inputs = outputs // 2
    return _numbered(layers)


def _encoder(config: VAEConfig) -> StreamingNetwork:
    outputs = config.dim * config.multipliers[-1]
    return StreamingNetwork({
        "past": _past(), "conv1": _conv(3, config.dim),
        "downsamples": _downsamples(config), "middle": _middle(outputs),
        "head": _head(outputs, 2 * config.latent_channels),
    })  # fmt: skip


def _decoder(config: VAEConfig) -> StreamingNetwork:
    inputs = config.dim * config.multipliers[-1]
    return StreamingNetwork({
        "past": _past(), "conv1": _conv(config.latent_channels, inputs),
        "middle": _middle(inputs), "upsamples": _upsamples(config),
        "head": _head(config.dim * config.multipliers[0], 3),
    })  # fmt: skip


class WanVAE(StreamingCodec):
    """The Wan2.1 VAE as a streaming `StreamingVAE`; any number of streams, each with its own caches.

    The statistics of the latents are constants and not part of a checkpoint. They are on the CPU even when the
    model is built on `meta`, so load weights with `assign=True` rather than after `to_empty`.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.conv1 = nn.Conv3d(2 * config.latent_channels, 2 * config.latent_channels, kernel_size=1)
        self.conv2 = nn.Conv3d(config.latent_channels, config.latent_channels, kernel_size=1)
        self.decoder = _decoder(config)
        self.register_buffer("latent_mean", _per_channel(config.latent_mean), persistent=False)
        self.register_buffer("latent_std", _per_channel(config.latent_std), persistent=False)

    def decode(self, latents: Tensor, cache: ConvCache) -> Decoded:
        """Decode the next latent frames of a stream, all of them at once."""
        check_latents(latents, self.config.latent_channels)
        raw, after = self.decode_raw(latents, cache)
        pictures = raw.float().clamp(-1.0, 1.0) * 0.5 + 0.5
        return Decoded(pictures.transpose(1, TIME), after)

    def decode_raw(self, latents: Tensor, cache: ConvCache) -> StreamingOutput:
        """The decoder's own output [B, 3, N, 8h, 8w], about -1..1, for latents as `decode` takes them."""
        z = latents.transpose(1, TIME) / (1 / self.latent_std) + self.latent_mean
        return self.decoder.advance(self.conv2(z), cache, latents.shape[1])

    def encode(self, frames: Tensor, cache: ConvCache) -> Encoded:
        """Encode the next pictures of a stream, all of them at once, to the mean of the posterior."""
        means, after = self.encode_means(frames * 2 - 1, cache)
        latents = (means.transpose(1, TIME) - self.latent_mean) * (1 / self.latent_std)
        return Encoded(latents.transpose(1, TIME), after)

    def encode_means(self, pixels: Tensor, cache: ConvCache) -> Encoded:
        """As `encode`, but from [B, N, 3, H, W] in -1..1 to means that are not normalized (StreamDiffusionV2)."""
        check_frames(pixels, at_start=cache.frames_seen == 0)
        moments, after = self.encode_raw(pixels.transpose(1, TIME), cache)
        return Encoded(moments[:, : self.config.latent_channels].transpose(1, TIME), after)

    def encode_raw(self, pictures: Tensor, cache: ConvCache) -> StreamingOutput:
        """Mean and log variance of the posterior [B, 2C, T, H/8, W/8] for [B, 3, N, H, W] in -1..1."""
        hidden, after = self.encoder.advance(pictures, cache, pictures.shape[TIME])
        return StreamingOutput(self.conv1(hidden), after)


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu").view(-1, 1, 1, 1)
