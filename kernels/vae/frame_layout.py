"""What kernels of a video autoencoder share: pictures [B, C, T, H, W] whose memory is channels-last.

The C channels of a pixel lie side by side, the pixels of a frame row by row without gaps. Frames and streams may
be further apart, so that some frames of a longer tensor are pictures too. `torch.channels_last_3d` is the case
without gaps anywhere, and what these kernels write.

A program takes `m` pixels of a frame with all their channels, which it rounds up to a power of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.tiles import ARCHITECTURES, INTERPRETER, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS

TILES: Tiles = {sm: Tile(m=32, n=128, warps=4) for sm in ARCHITECTURES} | {INTERPRETER: Tile(m=32, n=128, warps=1)}
"""`m` pixels of up to `n` channels, and as many values of other pixels: 32 for a thread, in loads of 128 bits."""

CHANNELS = {"wan": (96, 192, 384), "taehv": (64, 128, 256)}
"""Channels of the real decoders' pictures, for which kernels are compiled ahead of time."""


class FrameStrides(NamedTuple):
    """Elements from a stream's first frame to the next one's, and from a frame to the next one."""

    stream: int
    frame: int


def frame_strides(op: str, name: str, x: Tensor) -> FrameStrides:
    """Where the frames of `x` are. Raises ValueError unless they are pictures that a kernel can take."""
    if x.dtype not in FLOATS:
        raise ValueError(f"{op}: {name} is {x.dtype}; it takes {[str(dtype) for dtype in FLOATS]}")
    if x.dim() != 5 or 0 in x.shape:
        raise ValueError(f"{op}: {name} must be [B, C, T, H, W], none of them 0; got {list(x.shape)}")
    _, channels, _, height, width = x.shape
    stream, channel, frame, row, pixel = x.stride()
    wanted = ((channels, channel, 1), (width, pixel, channels), (height, row, channels * width))
    if any(size > 1 and stride != step for size, stride, step in wanted):
        raise ValueError(
            f"{op}: {name} {list(x.shape)} has strides {list(x.stride())}; its frames must be channels-last: "
            "use .contiguous(memory_format=torch.channels_last_3d)"
        )
    return FrameStrides(stream, frame)


def check_dense(op: str, wanted: Sequence[int], like: Tensor, **tensors: Tensor) -> None:
    """Raise ValueError unless all are pictures of shape `wanted` without gaps, of the kind of `like`."""
    for name, x in tensors.items():
        frame_strides(op, name, x)
        check_like(op, wanted, like, **{name: x})
        if not x.is_contiguous(memory_format=torch.channels_last_3d):
            raise ValueError(
                f"{op}: {name} {list(x.shape)} has gaps between its frames; strides {list(x.stride())}"
            )


def check_like(op: str, wanted: Sequence[int], like: Tensor, **tensors: Tensor) -> None:
    """Raise ValueError unless all have the shape `wanted` and the dtype and device of `like`."""
    for name, x in tensors.items():
        if tuple(x.shape) != tuple(wanted) or (x.dtype, x.device) != (like.dtype, like.device):
            raise ValueError(
                f"{op}: {name} is {list(x.shape)} {x.dtype} on {x.device}; "
                f"expected {list(wanted)} {like.dtype} on {like.device}"
            )


def empty_frames(shape: Sequence[int], like: Tensor) -> Tensor:
    """Unwritten memory for pictures, without gaps."""
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


def channels_last(x: Tensor) -> Tensor:
    """`x` as pictures without gaps: itself if it is, as what comes out of cuDNN or these kernels, else a copy."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def unstack_frames(x: Tensor, frames: int) -> Tensor:
    """[B, G*C, T, H, W] to [B, C, G*T, H, W]: each G-th of the channels is a frame, one after the other in time.

    Of pictures without gaps one copy of such, and for a single frame none.
    """
    pixels = x.permute(0, 2, 3, 4, 1).unflatten(4, (frames, -1))
    return pixels.permute(0, 1, 4, 2, 3, 5).flatten(1, 2).permute(0, 4, 1, 2, 3)


def frame_tile(op: str, x: Tensor) -> Tile:
    """How to cut up the frames of `x`."""
    return _fitted(tile_for(TILES, architecture(x.device), op), x.shape[1])


def _fitted(tile: Tile, channels: int) -> Tile:
    """`tile` with room for all channels, and fewer pixels in return."""
    n = 1 << (channels - 1).bit_length()
    return replace(tile, m=max(1, tile.m * tile.n // n), n=n)


class FrameCase(NamedTuple):
    """What the ahead-of-time cases of pictures differ in."""

    name: str
    architecture: int
    tile: Tile


def frame_cases(op: str, channels: Sequence[int]) -> list[FrameCase]:
    """One for each architecture and number of channels."""
    return [
        FrameCase(f"{op}_{count}_sm{sm}", sm, _fitted(TILES[sm], count))
        for sm in ARCHITECTURES
        for count in channels
    ]


HALF = FLOATS[torch.bfloat16]
"""The pointer that ahead-of-time cases are compiled for."""


def block_sizes(tile: Tile) -> dict[str, Any]:
    """The two constants that every kernel of pictures takes."""
    return {"BLOCK_M": tile.m, "BLOCK_N": tile.n}
