"""Pictures of twice the height and width by repetition, from frames that may lie two and more on the channels.

    out[:, c, t*G + g, 2h + i, 2w + j] = x[:, g*C + c, t, h, w] + bias[g*C + c]     i, j in 0, 1

    x      [B, G*C, T, H, W]    channels-last: each G-th of the channels is a frame, one after the other in time
    bias   [G*C]                what the convolution before it left out, or none
    out    [B, C, G*T, 2H, 2W]

Bytes: x is read once and written four times over: 5 x. In PyTorch's own operators it is 9 x: the bias is a pass,
and sorting the frames another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.tiles import AotCase
from kernels.vae.frame_layout import (
    CHANNELS,
    HALF,
    FrameCase,
    block_sizes,
    check_like,
    empty_frames,
    frame_cases,
    frame_strides,
    frame_tile,
)


def upsample_reference(x: Tensor, bias: Tensor | None, frames: int) -> Tensor:
    """The pictures of the `frames` frames on the channels of each frame of `x`."""
    y = x if bias is None else x + bias.view(-1, 1, 1, 1)
    sorted_frames = y.unflatten(1, (frames, -1)).transpose(2, 3).transpose(1, 2).flatten(1, 2)
    large = F.interpolate(sorted_frames.flatten(0, 1), scale_factor=2.0)
    return large.unflatten(0, sorted_frames.shape[:2]).transpose(1, 2)


@triton.jit
def _upsample_kernel(
    p_x: tl.tensor, p_bias: tl.tensor, p_out: tl.tensor, C: tl.tensor, T: tl.tensor, H: tl.tensor, W: tl.tensor,
    x_stream: tl.tensor, x_frame: tl.tensor, G: tl.constexpr, BIAS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """A program: BLOCK_M of the pixels of one of the G frames on the channels of a frame."""
    i_out = tl.program_id(1)
    i_stream, i_frame, i_group = i_out // (T * G), i_out // G % T, i_out % G
    o_s = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    o_c = tl.arange(0, BLOCK_N)[None, :]
    m_x = (o_s < H * W) & (o_c < C)
    p_x += i_stream.to(tl.int64) * x_stream + i_frame.to(tl.int64) * x_frame + i_group * C
    b_x = tl.load(p_x + o_s.to(tl.int64) * (G * C) + o_c, mask=m_x, other=0.0)
    if BIAS:
        b_bias = tl.load(p_bias + i_group * C + o_c, mask=o_c < C, other=0.0).to(tl.float32)
        b_x = (b_x.to(tl.float32) + b_bias).to(p_out.dtype.element_ty)

    p_out += i_out.to(tl.int64) * (4 * H * W * C)
    o_out = (o_s // W * (4 * W) + o_s % W * 2).to(tl.int64) * C + o_c
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            tl.store(p_out + o_out + (i * 2 * W + j) * C, b_x, mask=m_x)


@torch.library.custom_op(
    "longtake::upsample", mutates_args=(), schema="(Tensor x, Tensor? bias, int frames) -> Tensor"
)
def upsample(x: Tensor, bias: Tensor | None, frames: int) -> Tensor:
    """As `upsample_reference`: to the bit.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit.

    """
    strides = frame_strides("upsample", "x", x)
    batch, channels, steps, height, width = x.shape
    if frames < 1 or channels % frames:
        raise ValueError(f"upsample: {channels} channels do not hold {frames} frames")
    if bias is not None:
        check_like("upsample", (channels,), x, bias=bias)
    out = empty_frames((batch, channels // frames, steps * frames, 2 * height, 2 * width), x)
    tile = frame_tile("upsample", out)
    _upsample_kernel[(triton.cdiv(height * width, tile.m), batch * steps * frames)](
        x, x if bias is None else bias, out, channels // frames, steps, height, width, *strides,
        G=frames, BIAS=bias is not None, **block_sizes(tile), **tile.options,
    )  # fmt: skip
    return out


@upsample.register_fake
def _(x: Tensor, bias: Tensor | None, frames: int) -> Tensor:
    batch, channels, steps, height, width = x.shape
    return empty_frames((batch, channels // frames, steps * frames, 2 * height, 2 * width), x)


def aot_cases() -> Sequence[AotCase]:
    """The real decoders' doublings, in bf16: of pictures alone, and of frames too."""
    alone = [_case(case, frames=1) for case in frame_cases("upsample", (64, 192, 256))]
    return [*alone, *(_case(case, frames=2) for case in frame_cases("upsample_time", CHANNELS["wan"][2:]))]


def _case(case: FrameCase, *, frames: int) -> AotCase:
    pointers = dict.fromkeys(("p_x", "p_bias", "p_out"), HALF)
    sizes = dict.fromkeys(("C", "T", "H", "W", "x_stream", "x_frame"), "i32")
    return AotCase(
        name=case.name,
        kernel=_upsample_kernel,
        architecture=case.architecture,
        tile=case.tile,
        arguments=pointers | sizes,
        constants={"G": frames, "BIAS": frames > 1} | block_sizes(case.tile),
        aligned=(*pointers, "C", "x_stream", "x_frame"),
    )
