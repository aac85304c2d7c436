"""What a causal convolution over time reads, and what it remembers: its past frames and a new piece, joined.

    joined[:, :, :P] = past, or zeros where there is none yet
    joined[:, :, P:] = piece, or with gamma  silu((piece + bias) / |piece + bias| * sqrt(C) * gamma)
    kept             = joined[:, :, T:]

    piece        [B, C, T, H, W]    T new frames, channels-last; |.| is the length of a pixel's vector of channels
    past, kept   [B, C, P, H, W]    the frames before them, and those that the next piece follows
    gamma, bias  [C] values         a norm's scale, and the bias that the convolution before it left out
    joined       [B, C, P+T, H, W]

`kept` is memory of its own that the same pass writes: the new past is where it stays, and the old one is as it was
if the call, or one after it, fails.

Bytes: T + P frames are read and T + 2P written. For P = 2 and the 12 frames of a block in the Wan decoder's last
stage (96 channels of 480x832 in 16 bits, 76.7 MB a frame) that is 2.3 GB. In PyTorch's own operators it is
13T + 4P, 12.6 GB: the bias, the norm's length, quotient, factor and gamma, SiLU, the joining copy, the copy kept.
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
    check_dense,
    empty_frames,
    frame_cases,
    frame_strides,
    frame_tile,
)

SHORTEST = 1e-12
"""Vectors of channels count as at least this long, as in torch's normalize."""


def norm_silu_reference(x: Tensor, gamma: Tensor) -> Tensor:
    """The norm and the activation in front of a convolution, rounded after each factor as the autoencoder does."""
    unit = F.normalize(x, dim=1, eps=SHORTEST)
    return F.silu(unit.mul_(x.shape[1] ** 0.5) * gamma.view(-1, 1, 1, 1), inplace=True)


def causal_pad_reference(
    piece: Tensor, past: Tensor | None, kept: Tensor, gamma: Tensor | None, bias: Tensor | None
) -> Tensor:
    """The joined frames. `kept`, of any strides, is written."""
    x = piece if bias is None else piece + bias.view(-1, 1, 1, 1)
    x = x if gamma is None else norm_silu_reference(x, gamma)
    joined = torch.cat((torch.zeros_like(kept) if past is None else past, x), dim=2)
    kept.copy_(joined[:, :, piece.shape[2] :])
    return joined


@triton.jit
def _causal_pad_kernel(
    p_piece: tl.tensor, p_past: tl.tensor, p_gamma: tl.tensor, p_bias: tl.tensor, p_joined: tl.tensor,
    p_kept: tl.tensor, C: tl.tensor, T: tl.tensor, P: tl.tensor, S: tl.tensor, piece_stream: tl.tensor,
    piece_frame: tl.tensor, scale: tl.tensor, PAST: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr,
    SHORTEST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """A program: BLOCK_M of the S pixels of one joined frame."""
    i_joined = tl.program_id(1)
    i_stream, i_frame = (i_joined // (T + P)).to(tl.int64), (i_joined % (T + P)).to(tl.int64)
    o_s = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = tl.arange(0, BLOCK_N)
    m_c = o_c < C
    m_x = (o_s < S)[:, None] & m_c[None, :]
    o_x = o_s.to(tl.int64)[:, None] * C + o_c[None, :]
    frame = S * C

    if i_frame >= P:
        p_piece += i_stream * piece_stream + (i_frame - P) * piece_frame
        b_x = tl.load(p_piece + o_x, mask=m_x, other=0.0).to(tl.float32)
        if BIAS:
            b_x += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
        if NORM:
            b_gamma = tl.load(p_gamma + o_c, mask=m_c, other=0.0).to(tl.float32)
            b_length = tl.sqrt(tl.sum(b_x * b_x, 1))
            b_length = tl.where(b_length < SHORTEST, SHORTEST, b_length)
            b_x = b_x * (scale / b_length)[:, None] * b_gamma[None, :]
            b_x = b_x / (1.0 + tl.exp(-b_x))
    elif PAST:
        b_x = tl.load(p_past + (i_stream * P + i_frame) * frame + o_x, mask=m_x, other=0.0).to(tl.float32)
    else:
        b_x = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)

    b_y = b_x.to(p_joined.dtype.element_ty)
    tl.store(p_joined + (i_stream * (T + P) + i_frame) * frame + o_x, b_y, mask=m_x)
    if i_frame >= T:
        tl.store(p_kept + (i_stream * P + i_frame - T) * frame + o_x, b_y, mask=m_x)


@torch.library.custom_op(
    "longtake::causal_pad",
    mutates_args=("kept",),
    schema="(Tensor piece, Tensor? past, Tensor(a!) kept, Tensor? gamma, Tensor? bias) -> Tensor",
)
def causal_pad(
    piece: Tensor, past: Tensor | None, kept: Tensor, gamma: Tensor | None, bias: Tensor | None
) -> Tensor:
    """As `causal_pad_reference`, with one rounding at the end.

    `past` and `kept` have no gaps between their frames.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit, or `kept` is the memory of `past`.

    """
    strides = _check(piece, past, kept, gamma, bias)
    batch, channels, frames, height, width = piece.shape
    remembered, pixels = kept.shape[2], height * width
    joined = empty_frames((batch, channels, remembered + frames, height, width), piece)
    tile = frame_tile("causal_pad", piece)
    _causal_pad_kernel[(triton.cdiv(pixels, tile.m), batch * (remembered + frames))](
        piece, kept if past is None else past, piece if gamma is None else gamma, piece if bias is None else bias,
        joined, kept, channels, frames, remembered, pixels, *strides, channels**0.5,
        PAST=past is not None, NORM=gamma is not None, BIAS=bias is not None, SHORTEST=SHORTEST,
        **block_sizes(tile), **tile.options,
    )  # fmt: skip
    return joined


@causal_pad.register_fake
def _(piece: Tensor, past: Tensor | None, kept: Tensor, gamma: Tensor | None, bias: Tensor | None) -> Tensor:
    batch, channels, frames, height, width = piece.shape
    return empty_frames((batch, channels, kept.shape[2] + frames, height, width), piece)


def _check(
    piece: Tensor, past: Tensor | None, kept: Tensor, gamma: Tensor | None, bias: Tensor | None
) -> tuple[int, int]:
    strides = frame_strides("causal_pad", "piece", piece)
    batch, channels, _, height, width = piece.shape
    before = {"kept": kept} if past is None else {"kept": kept, "past": past}
    check_dense("causal_pad", (batch, channels, kept.shape[2], height, width), piece, **before)
    if past is not None and past.data_ptr() == kept.data_ptr():
        raise ValueError(
            "causal_pad: kept is past itself, which must outlive a call that fails; give it other memory"
        )
    for name, values in (("gamma", gamma), ("bias", bias)):
        if values is not None and (
            values.numel() != channels
            or not values.is_contiguous()
            or (values.dtype, values.device) != (piece.dtype, piece.device)
        ):
            raise ValueError(
                f"causal_pad: {name} is {list(values.shape)} {values.dtype} on {values.device}; "
                f"expected {channels} values, {piece.dtype} on {piece.device}"
            )
    return strides


def aot_cases() -> Sequence[AotCase]:
    """What the real decoder joins, in bf16: after a norm, with and without the bias before it, and as it is."""
    normed = [_case(case, norm=True) for case in frame_cases("causal_pad_norm", CHANNELS["wan"])]
    return [*normed, *(_case(case, norm=False) for case in frame_cases("causal_pad", (384,)))]


def _case(case: FrameCase, *, norm: bool) -> AotCase:
    pointers = dict.fromkeys(("p_piece", "p_past", "p_gamma", "p_bias", "p_joined", "p_kept"), HALF)
    sizes = dict.fromkeys(("C", "T", "P", "S", "piece_stream", "piece_frame"), "i32")
    constants = {"PAST": True, "NORM": norm, "BIAS": norm, "SHORTEST": SHORTEST}
    return AotCase(
        name=case.name,
        kernel=_causal_pad_kernel,
        architecture=case.architecture,
        tile=case.tile,
        arguments=pointers | sizes | {"scale": "fp32"},
        constants=constants | block_sizes(case.tile),
        aligned=(*pointers, "C", "S", "piece_stream", "piece_frame"),
    )
