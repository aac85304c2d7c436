"""A small video autoencoder over patches of 8x8 pixels x 4 frames, run over a stream piece by piece.

Time is folded into channels: the networks run once per latent frame, and its four pictures differ from the first
layer on. Encoder and decoder are each the sum of a linear code, which can be had from principal
components without any training, and of a small convolutional network, which adds what the code misses. Inside,
tensors are [batch, frames, channels, height, width], channels-last in memory; frames are latent frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from engines.config.geometry import SPATIAL_FACTOR, TEMPORAL_FACTOR
from engines.config.networks import PatchVAEConfig
from engines.vae.causal_conv import (
    FRAMES,
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
from engines.vae.protocol import Decoded, Encoded, check_frames, check_latents
from engines.vae.streaming_codec import StreamingCodec
from kernels.vae.ops import VAEOps

TIME = 1
"""The axis of the frames."""

LEAD = TEMPORAL_FACTOR - 1
"""Times that a stream's first picture is repeated in front of it, to fill its latent frame."""

COLORS = 3

PLANES = TEMPORAL_FACTOR * COLORS
"""Channels of a group: the colors of each of its pictures."""


def _per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    pictures = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    y: Tensor = layer(pictures).unflatten(0, x.shape[:2])
    return y


class FrameSequential(StreamingSequential):
    """A chain whose stateless layers take one frame at a time: [B*T, C, H, W]."""

    @override
    def apply_stateless(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The frames become the batch."""
        return _per_frame(layer, x)


class TemporalConv(StreamingLayer):
    """A convolution over each frame and the one before it; a stream's first frame is its own past."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.past = CausalPad(frames=1, dim=TIME, repeat_first=True)
        self.conv = nn.Conv2d(2 * inputs, outputs, kernel, padding=kernel // 2)

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """[B, T, inputs, H, W] to [B, T, outputs, H, W]."""
        if self.ops is not None:
            pairs = self.ops.frame_pairs(*self.past.exchange(x, step))
            return convolve_biased(self.ops, self.conv, pairs).movedim(FRAMES, TIME)
        before = self.past(x, step)[:, :-1]
        return _per_frame(self.conv, torch.cat((x, before), dim=2))

    @override
    def receptive_field(self, frames: int) -> int:
        """The frames and the one before them."""
        return self.past.receptive_field(frames)


class ResidualBlock(StreamingLayer):
    """Adds two convolutions of a frame to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """Same shape as the input."""
        if self.ops is not None:
            return self._fused(self.ops, x)
        return x + _per_frame(self.conv2, F.relu(_per_frame(self.conv1, x), inplace=True))

    def _fused(self, ops: VAEOps, x: Tensor) -> Tensor:
        shortcut = x.movedim(TIME, FRAMES)
        hidden = convolve(self.conv1, shortcut)
        ops.conv_epilogue(hidden, bias_of(self.conv1), None, True)
        y = convolve(self.conv2, hidden)
        ops.conv_epilogue(y, bias_of(self.conv2), shortcut, False)
        return y.movedim(FRAMES, TIME)

    @override
    def receptive_field(self, frames: int) -> int:
        """No frame but its own."""
        return frames


class Coder(StreamingNetwork):
    """The sum of a linear code and of a network."""

    linear: FrameSequential
    network: FrameSequential

    def __init__(self, linear: list[nn.Module], network: list[nn.Module]) -> None:
        super().__init__({
            "linear": FrameSequential(dict(enumerate(linear))),
            "network": FrameSequential(dict(enumerate(network))),
        })  # fmt: skip

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """Both outputs, added."""
        return self.linear(x, step) + self.network(x, step)

    @override
    def receptive_field(self, frames: int) -> int:
        """The network's: the linear code remembers nothing."""
        return self.network.receptive_field(frames)


def _blocks(count: int, channels: int) -> list[nn.Module]:
    return [ResidualBlock(channels) for _ in range(count)]


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _encoder(config: PatchVAEConfig) -> Coder:
    outer, inner = config.encoder_widths
    linear = [nn.PixelUnshuffle(SPATIAL_FACTOR), _conv(PLANES * SPATIAL_FACTOR**2, config.latent_channels)]
    network = [
        nn.PixelUnshuffle(SPATIAL_FACTOR // 2), _conv(PLANES * (SPATIAL_FACTOR // 2) ** 2, outer),
        TemporalConv(outer, outer, kernel=1), *_blocks(2, outer),
        nn.Conv2d(outer, inner, 4, stride=2, padding=1), nn.ReLU(inplace=True), *_blocks(2, inner),
        nn.ReLU(inplace=True), _conv(inner, config.latent_channels),
    ]  # fmt: skip
    return Coder(linear, network)


def _decoder(config: PatchVAEConfig) -> Coder:
    inner, middle, outer = config.decoder_widths
    linear = [_conv(config.latent_channels, PLANES * SPATIAL_FACTOR**2), nn.PixelShuffle(SPATIAL_FACTOR)]
    network = [
        TemporalConv(config.latent_channels, inner, kernel=3), *_blocks(2, inner),
        *_doubling(inner, middle),
        TemporalConv(middle, middle, kernel=1), *_blocks(2, middle),
        TemporalConv(middle, middle, kernel=1), *_blocks(2, middle),
        *_doubling(middle, outer),
        TemporalConv(outer, outer, kernel=1), *_blocks(2, outer),
        nn.ReLU(inplace=True), _conv(outer, PLANES * 4), nn.PixelShuffle(2),
    ]  # fmt: skip
    return Coder(linear, network)


def _doubling(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ReLU(inplace=True), nn.Conv2d(inputs, 4 * outputs, kernel_size=1), nn.PixelShuffle(2)]


class PatchVAE(StreamingCodec):
    """The autoencoder as a `StreamingVAE`; any number of streams, each with its own caches."""

    encoder: Coder
    decoder: Coder

    def __init__(self, config: PatchVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)

    def decode(self, latents: Tensor, cache: ConvCache) -> Decoded:
        """Decode the next latent frames of a stream, all of them at once."""
        check_latents(latents, self.config.latent_channels)
        raw, after = self.decode_raw(latents, cache)
        return Decoded(raw.float().clamp(0.0, 1.0), after)

    def decode_raw(self, latents: Tensor, cache: ConvCache) -> StreamingOutput:
        """The decoder's own output [B, N, 3, 8h, 8w], about 0..1, for latents as `decode` takes them."""
        groups, after = self.decoder.advance(latents, cache, latents.shape[1])
        pictures = groups.unflatten(2, (TEMPORAL_FACTOR, COLORS)).flatten(1, 2)
        return StreamingOutput(pictures[:, LEAD:] if cache.frames_seen == 0 else pictures, after)

    def encode(self, frames: Tensor, cache: ConvCache) -> Encoded:
        """Encode the next pictures of a stream, all of them at once.

        The first picture of a stream is seen four times, as the decoder shows the last of four.
        """
        at_start = cache.frames_seen == 0
        check_frames(frames, at_start=at_start)
        seen = frames
        if at_start:
            seen = torch.cat((frames[:, :1].expand(-1, LEAD, -1, -1, -1), frames), dim=TIME)
        groups = seen.unflatten(TIME, (-1, TEMPORAL_FACTOR)).flatten(2, 3)
        return Encoded(*self.encoder.advance(groups, cache, frames.shape[1]))

    def encode_means(self, pixels: Tensor, cache: ConvCache) -> Encoded:
        """As `encode`, but from [B, N, 3, H, W] in -1..1."""
        return self.encode(pixels * 0.5 + 0.5, cache)
