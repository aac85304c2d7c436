"""Each frame of a piece with the frame before it, side by side on the channels.

    pairs[:, :C, t] = piece[:, :, t]
    pairs[:, C:, t] = piece[:, :, t-1]; for t = 0 the past, or zeros where there is none yet
    kept            = piece[:, :, T-1]

    piece        [B, C, T, H, W]   T new frames, channels-last
    past, kept   [B, C, 1, H, W]   the frame before them, and the one that the next piece follows
    pairs        [B, 2C, T, H, W]

`kept` is memory of its own that the same pass writes, so that a call that fails changes nothing.

Bytes: T + 1 frames are read and 2T + 1 written. In PyTorch's own operators, which join past and piece before they
pair the frames, it is 6T + 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
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


def frame_pairs_reference(piece: Tensor, past: Tensor | None, kept: Tensor) -> Tensor:
    """The pairs. `kept`, of any strides, is written."""
    joined = torch.cat((torch.zeros_like(kept) if past is None else past, piece), dim=2)
    kept.copy_(joined[:, :, -1:])
    return torch.cat((piece, joined[:, :, :-1]), dim=1)


@triton.jit
def _frame_pairs_kernel(
    p_piece: tl.tensor, p_past: tl.tensor, p_pairs: tl.tensor, p_kept: tl.tensor, C: tl.tensor, T: tl.tensor,
    S: tl.tensor, piece_stream: tl.tensor, piece_frame: tl.tensor, PAST: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """A program: BLOCK_M of the S pixels of the past or of one frame, wherever they go."""
    i_joined = tl.program_id(1)
    i_stream, i_frame = (i_joined // (T + 1)).to(tl.int64), (i_joined % (T + 1)).to(tl.int64) - 1
    o_s = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
    o_c = tl.arange(0, BLOCK_N)[None, :]
    m_x = (o_s < S) & (o_c < C)
    o_x, o_pair = o_s * C + o_c, o_s * (2 * C) + o_c
    frame = S * C

    if i_frame >= 0:
        b_x = tl.load(p_piece + i_stream * piece_stream + i_frame * piece_frame + o_x, mask=m_x, other=0.0)
    elif PAST:
        b_x = tl.load(p_past + i_stream * frame + o_x, mask=m_x, other=0.0)
    else:
        b_x = tl.zeros((BLOCK_M, BLOCK_N), p_pairs.dtype.element_ty)

    p_pairs += (i_stream * T + i_frame) * 2 * frame
    if i_frame >= 0:
        tl.store(p_pairs + o_pair, b_x, mask=m_x)
    if i_frame + 1 < T:
        tl.store(p_pairs + 2 * frame + C + o_pair, b_x, mask=m_x)
    else:
        tl.store(p_kept + i_stream * frame + o_x, b_x, mask=m_x)


@torch.library.custom_op(
    "longtake::frame_pairs",
    mutates_args=("kept",),
    schema="(Tensor piece, Tensor? past, Tensor(a!) kept) -> Tensor",
)
def frame_pairs(piece: Tensor, past: Tensor | None, kept: Tensor) -> Tensor:
    """As `frame_pairs_reference`, to the bit. `past` and `kept` have no gaps between their streams.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit, or `kept` is the memory of `past`.

    """
    strides = frame_strides("frame_pairs", "piece", piece)
    batch, channels, frames, height, width = piece.shape
    before = {"kept": kept} if past is None else {"kept": kept, "past": past}
    check_dense("frame_pairs", (batch, channels, 1, height, width), piece, **before)
    if past is not None and past.data_ptr() == kept.data_ptr():
        raise ValueError(
            "frame_pairs: kept is past itself, which must outlive a call that fails; give it other memory"
        )
    pairs = empty_frames((batch, 2 * channels, frames, height, width), piece)
    tile, pixels = frame_tile("frame_pairs", piece), height * width
    _frame_pairs_kernel[(triton.cdiv(pixels, tile.m), batch * (frames + 1))](
        piece, kept if past is None else past, pairs, kept, channels, frames, pixels, *strides,
        PAST=past is not None, **block_sizes(tile), **tile.options,
    )  # fmt: skip
    return pairs


@frame_pairs.register_fake
def _(piece: Tensor, past: Tensor | None, kept: Tensor) -> Tensor:
    batch, channels, frames, height, width = piece.shape
    return empty_frames((batch, 2 * channels, frames, height, width), piece)


def aot_cases() -> Sequence[AotCase]:
    """The memory blocks of the real tiny decoder, in bf16."""
    return [_case(case) for case in frame_cases("frame_pairs", CHANNELS["taehv"])]


def _case(case: FrameCase) -> AotCase:
    pointers = dict.fromkeys(("p_piece", "p_past", "p_pairs", "p_kept"), HALF)
    return AotCase(
        name=case.name,
        kernel=_frame_pairs_kernel,
        architecture=case.architecture,
        tile=case.tile,
        arguments=pointers | dict.fromkeys(("C", "T", "S", "piece_stream", "piece_frame"), "i32"),
        constants={"PAST": True} | block_sizes(case.tile),
        aligned=(*pointers, "C", "S", "piece_stream", "piece_frame"),
    )
