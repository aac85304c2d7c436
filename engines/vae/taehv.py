"""A tiny video autoencoder of the TAEHV kind, run over a stream piece by piece.

Plain 2-D convolutions; blocks that also see the frame before carry the time. The layers and the names of their
parameters are those of `taew2_1` (madebyollin/taehv, MIT). Inside, tensors are
[batch, frames, channels, height, width].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from engines.config.geometry import TEMPORAL_FACTOR
from engines.config.networks import TAEHVConfig
from engines.vae.causal_conv import (
    FRAMES,
    CausalPad,
    StreamingLayer,
    StreamingNetwork,
    StreamingOutput,
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

TIME = 1
"""The axis of the frames."""

LEAD = TEMPORAL_FACTOR - 1
"""Frames that a stream's first latent frame stands for besides its one picture."""


def _per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return y


class FrameNetwork(StreamingNetwork):
    """A network whose stateless layers take one frame at a time: [B*T, C, H, W]."""

    @override
    def apply_stateless(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The frames become the batch."""
        if self.ops is not None and isinstance(layer, nn.Conv2d) and layer.bias is not None:
            return convolve_biased(self.ops, layer, x.movedim(TIME, FRAMES)).movedim(FRAMES, TIME)
        return _per_frame(layer, x)


class SoftClamp(nn.Module):
    """Keeps latents within -3..3."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input."""
        return torch.tanh(x / 3) * 3


class MemoryBlock(StreamingLayer):
    """A residual block that sees each frame and the one before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.past = CausalPad(frames=1, dim=TIME)
        self.conv = nn.Sequential(
            _conv(2 * channels, channels), nn.ReLU(inplace=True),
            _conv(channels, channels), nn.ReLU(inplace=True),
            _conv(channels, channels),
        )  # fmt: skip

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """Same shape as the input."""
        if self.ops is not None:
            return self._fused(self.ops, x, step)
        before = self.past(x, step)[:, :-1]
        y = _per_frame(self.conv, torch.cat((x, before), dim=2))
        return F.relu(y + x, inplace=True)

    def _fused(self, ops: VAEOps, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        piece, past, kept = self.past.exchange(x, step)
        y = ops.frame_pairs(piece, past, kept)
        convs = [layer for layer in self.conv if isinstance(layer, nn.Conv2d)]
        for conv in convs:
            y = convolve(conv, y)
            ops.conv_epilogue(y, bias_of(conv), piece if conv is convs[-1] else None, True)
        return y.movedim(FRAMES, TIME)

    @override
    def receptive_field(self, frames: int) -> int:
        """The frames and the one before them."""
        return self.past.receptive_field(frames)


class TimePool(StreamingLayer):
    """Makes one frame of `stride`."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(stride * channels, channels, kernel_size=1, bias=False)

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """[B, stride*T, C, H, W] to [B, T, C, H, W]: the frames of a group are stacked on the channels."""
        return _per_frame(self.conv, x.unflatten(TIME, (-1, self.stride)).flatten(2, 3))


class TimeGrow(StreamingLayer):
    """Makes `stride` frames of one.

    The checkpoint's sequence enlarges the pictures first. The two commute, and in this order the growing costs a
    quarter.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, stride * channels, kernel_size=1, bias=False)

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """[B, T, C, H, W] to [B, stride*T, C, H, W]: each C channels are a frame."""
        if self.ops is not None:
            frames = convolve(self.conv, channels_last(x.movedim(TIME, FRAMES)))
            return unstack_frames(frames, self.stride).movedim(FRAMES, TIME)
        return _per_frame(self.conv, x).unflatten(2, (self.stride, -1)).flatten(1, 2)

    @override
    def receptive_field(self, frames: int) -> int:
        """One frame for each `stride`, the last of which may be needed in part."""
        return -(-frames // self.stride)


def _conv(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=bias)


def _memory_blocks(position: int, channels: int) -> dict[int, nn.Module]:
    return {position + i: MemoryBlock(channels) for i in range(3)}


def _halving(position: int, channels: int, time_stride: int, scale: int) -> dict[int, nn.Module]:
    return {
        position: TimePool(channels, time_stride),
        position + 1: _conv(channels, channels, stride=scale, bias=False),
        **_memory_blocks(position + 2, channels),
    }


def _doubling(position: int, inputs: int, outputs: int, time_stride: int, scale: int) -> dict[int, nn.Module]:
    return {
        **_memory_blocks(position, inputs),
        position + 4: TimeGrow(inputs, time_stride),
        position + 5: (DoublingConv if scale == 2 else _conv)(inputs, outputs, bias=False),
    }


def _encoder(config: TAEHVConfig) -> FrameNetwork:
    width = config.encoder_width
    inner, middle, outer = config.scales
    return FrameNetwork({
        0: _conv(3 * config.patch**2, width), 1: nn.ReLU(inplace=True),
        **_halving(2, width, time_stride=2, scale=outer),
        **_halving(7, width, time_stride=2, scale=middle),
        **_halving(12, width, time_stride=1, scale=inner),
        17: _conv(width, config.latent_channels),
    })  # fmt: skip


def _decoder(config: TAEHVConfig) -> FrameNetwork:
    w0, w1, w2, w3 = config.decoder_widths
    inner, middle, outer = config.scales
    return FrameNetwork({
        0: SoftClamp(), 1: _conv(config.latent_channels, w0), 2: nn.ReLU(inplace=True),
        **_doubling(3, w0, w1, time_stride=1, scale=inner),
        **_doubling(9, w1, w2, time_stride=2, scale=middle),
        **_doubling(15, w2, w3, time_stride=2, scale=outer),
        21: nn.ReLU(inplace=True), 22: _conv(w3, 3 * config.patch**2),
    })  # fmt: skip


class TAEHV(StreamingCodec):
    """A tiny autoencoder as a streaming `StreamingVAE`; any number of streams, each with its own caches."""

    def __init__(self, config: TAEHVConfig) -> None:
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
        folded, after = self.decoder.advance(latents, cache, latents.shape[1])
        pictures = F.pixel_shuffle(folded, self.config.patch)
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
        folded = F.pixel_unshuffle(seen, self.config.patch)
        return Encoded(*self.encoder.advance(folded, cache, frames.shape[1]))


def fit_time_grow(weights: Mapping[str, Tensor], config: TAEHVConfig) -> dict[str, Tensor]:
    """`weights` with the time-grow layers cut to the output channels that `config` needs.

    Some checkpoints can grow time further than Wan's latents need; of their output channels the last ones are
    the frames that come last, and those count. Weights with too few channels are left for the loader to refuse.
    """
    with torch.device("meta"):
        expected = TAEHV(config).state_dict()
    grows = {f"decoder.{position}.conv.weight" for position in (7, 13, 19)}
    return {name: w[-len(expected[name]) :] if name in grows else w for name, w in weights.items()}
