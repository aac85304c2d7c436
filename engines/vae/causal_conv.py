"""What networks are made of that run over a stream piece by piece and remember between two pieces.

Each `CausalPad` of a `StreamingNetwork` has a slot in the network's `ConvCache`. It is the only layer that reads
or writes one; everything else is a function of its input.

A network runs on torch's own operators, or fused (`StreamingNetwork.fuse`): channels-last, and what lies between
two convolutions in one pass over memory. Its parameters, caches and results are the same up to rounding, so a
stream may change from one to the other between two pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from engines.errors import StreamError
from engines.vae.conv_cache import ConvCache, ConvCacheUpdate
from engines.vae.doubling_conv import DoublingConv
from kernels.vae.frame_layout import channels_last, empty_frames
from kernels.vae.ops import VAEOps

TENSOR_CORE_CHANNELS = 8
"""In 16 bits, outputs of a convolution are made in groups of so many."""

FRAMES = 2
"""The axis of the frames in what `VAEOps` take: [batch, channels, frames, height, width]."""


class StreamingLayer(nn.Module):
    """A layer whose output depends on earlier pieces, or whose time axis is longer or shorter than its input's.

    Also one that `ops`, which the network sets, compute: None where torch's own operators do.
    """

    ops: VAEOps | None = None

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """The output for the piece `x` of the stream."""
        raise NotImplementedError

    def receptive_field(self, frames: int) -> int:
        """How many of its last input frames the layer's cache and its last `frames` outputs depend on.

        Only the layers of a decoder can say.
        """
        raise NotImplementedError


class PadBuffers(NamedTuple):
    """A piece, the frames before it if there are any yet, and memory for those that the next piece follows.

    All are channels-last pictures, without gaps.
    """

    piece: Tensor
    past: Tensor | None
    kept: Tensor


class CausalPad(StreamingLayer):
    """Puts the `frames` frames that came before a piece in front of it.

    At the start of a stream they are zeros, or with `repeat_first` the piece's first frame. `dim` is the axis of
    time. The network that the layer becomes part of sets `slot`.
    """

    slot: int

    def __init__(self, frames: int, dim: int, *, repeat_first: bool = False) -> None:
        super().__init__()
        self.frames = frames
        self.dim = dim
        self.repeat_first = repeat_first

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """One copy joins the piece to its past; raises StreamError if their shapes or dtypes differ."""
        if self.ops is not None:
            return self.join(self.ops, x, step)
        past = self._recall(x, step)
        joined = torch.cat((x.new_zeros(self._past_shape(x)) if past is None else past, x), dim=self.dim)
        step.put_copy(self.slot, joined.narrow(self.dim, x.shape[self.dim], self.frames))
        return joined

    def join(
        self,
        ops: VAEOps,
        x: Tensor,
        step: ConvCacheUpdate,
        gamma: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """The joined pictures; with `gamma`, `x` with `bias` added comes normed and activated."""
        piece, past, kept = self.exchange(x, step)
        return ops.causal_pad(piece, past, kept, gamma, bias)

    def exchange(self, x: Tensor, step: ConvCacheUpdate) -> PadBuffers:
        """What an op needs for the piece `x`. It must write `kept`, which is the new past from here on."""
        past = self._recall(x, step)
        piece = channels_last(x.movedim(self.dim, FRAMES))
        kept = empty_frames((*piece.shape[:FRAMES], self.frames, *piece.shape[FRAMES + 1 :]), piece)
        step.put(self.slot, kept.movedim(FRAMES, self.dim))
        return PadBuffers(piece, None if past is None else channels_last(past.movedim(self.dim, FRAMES)), kept)

    def _recall(self, x: Tensor, step: ConvCacheUpdate) -> Tensor | None:
        past, shape = step.past(self.slot), self._past_shape(x)
        if past is not None and (past.shape != shape or past.dtype != x.dtype):
            raise StreamError(
                f"layer {self.slot} remembers {tuple(past.shape)} {past.dtype}, "
                f"but this piece follows {shape} {x.dtype}"
            )
        if past is None and self.repeat_first:
            return x.narrow(self.dim, 0, 1).expand(shape)
        return past

    def _past_shape(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape[: self.dim], self.frames, *x.shape[self.dim + 1 :])

    @override
    def receptive_field(self, frames: int) -> int:
        """The outputs' own frames and those before them."""
        return frames + self.frames


class StreamingSequential(StreamingLayer):
    """Runs layers one after the other, in the order of the mapping.

    The keys are the layers' names in the checkpoint: mostly positions in a sequence, some of which hold
    nothing with parameters and are left out.
    """

    def __init__(self, layers: Mapping[int, nn.Module] | Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(str(name), layer)

    @override
    def forward(self, x: Tensor, step: ConvCacheUpdate) -> Tensor:
        """The last layer's output."""
        for layer in self.children():
            x = layer(x, step) if isinstance(layer, StreamingLayer) else self.apply_stateless(layer, x)
        return x

    def apply_stateless(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The output of a layer that looks at each frame by itself."""
        y: Tensor = layer(x)
        return y

    @override
    def receptive_field(self, frames: int) -> int:
        """The layers' reaches, taken from the last to the first."""
        for layer in reversed(list(self.children())):
            frames = layer.receptive_field(frames) if isinstance(layer, StreamingLayer) else frames
        return frames


def convolve(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """`conv` of channels-last pictures, without its bias: of each frame by itself where it knows no time."""
    if isinstance(conv, nn.Conv3d):
        y = F.conv3d(x, _weight(conv, x), None, conv.stride, conv.padding)
        return channels_last(y[:, : conv.out_channels])
    frames = x.transpose(1, FRAMES).flatten(0, 1)
    if isinstance(conv, DoublingConv):
        y = conv.enlarge(frames, None)
    else:
        y = F.conv2d(frames, _weight(conv, x), None, conv.stride, conv.padding)[:, : conv.out_channels]
    return channels_last(y.unflatten(0, (x.shape[0], -1)).transpose(1, FRAMES))


def _weight(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """With outputs that nobody takes where tensor cores want more than there are, as of a head's three colors."""
    missing = -conv.out_channels % TENSOR_CORE_CHANNELS
    if missing == 0 or not uses_tensor_cores(x):
        return conv.weight
    return _laid_out(F.pad(conv.weight, (*(0, 0) * (conv.weight.dim() - 1), 0, missing)))


def _laid_out(weight: Tensor) -> Tensor:
    """The weight of a convolution over pictures, or over frames of them, channels-last."""
    return channels_last(weight) if weight.dim() == 5 else weight.contiguous(memory_format=torch.channels_last)


def uses_tensor_cores(x: Tensor) -> bool:
    """Whether `x` is multiplied by units that take whole groups of channels only."""
    return x.is_cuda and x.element_size() == 2


def convolve_biased(ops: VAEOps, conv: nn.Module, x: Tensor) -> Tensor:
    """`conv`, a convolution with a bias, of pictures."""
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    y = convolve(conv, x)
    ops.conv_epilogue(y, bias_of(conv), None, False)
    return y


def bias_of(conv: nn.Conv2d | nn.Conv3d) -> Tensor:
    """The bias of a convolution that was built with one."""
    assert conv.bias is not None
    return conv.bias


class StreamingOutput(NamedTuple):
    """A network's output for a piece of a stream, and its cache after that piece."""

    output: Tensor
    cache: ConvCache


class StreamingNetwork(StreamingSequential):
    """A chain that is complete: it gives every `CausalPad` in it a slot and makes caches for them."""

    def __init__(self, layers: Mapping[int, nn.Module] | Mapping[str, nn.Module]) -> None:
        super().__init__(layers)
        pasts = [layer for layer in self.modules() if isinstance(layer, CausalPad)]
        for slot, past in enumerate(pasts):
            past.slot = slot
        self.slots = len(pasts)

    def start(self) -> ConvCache:
        """The cache of a stream of which nothing has been seen."""
        return ConvCache(frames_seen=0, frames=(None,) * self.slots)

    def prepare(self) -> None:
        """Make what convolutions do faster: weights that lie channels-last, and sums of those of doublings.

        Call it when the weights are in place.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Conv3d):
                layer.weight.data = _laid_out(layer.weight.data)
            if isinstance(layer, DoublingConv):
                layer.fold()

    def fuse(self, ops: VAEOps) -> None:
        """Run on `ops` from now on. Call it when the weights are in place."""
        self.prepare()
        for layer in self.modules():
            if isinstance(layer, StreamingLayer):
                layer.ops = ops

    def advance(self, x: Tensor, cache: ConvCache, frames: int) -> StreamingOutput:
        """Run over the next `frames` frames of a stream, which are all of `x`; `cache` stays as it is.

        Raises StreamError if the cache belongs to another network.
        """
        if len(cache.frames) != self.slots:
            raise StreamError(f"a cache of {len(cache.frames)} layers; this network has {self.slots}")
        step = ConvCacheUpdate(cache, frames)
        output = self(x, step)
        return StreamingOutput(output, step.finish())
