"""LayerNorm without weights, then scale and shift of the row's frame; optionally to INT8 with a scale per token.

    out[b, f, t] = layer_norm(x[b, f, t]) * (1 + scale[b, f]) + shift[b, f]

    x             [B, F, T, D]   B streams, F frames of T tokens, D channels
    shift, scale  [B, F, 1, D]   views into the table of a layer's modulations
    out           [B, F, T, D]   of the dtype of x; or int8, with fp32 scales [B, F, T]: value = int8 * scale

Bytes: a row is read and written once, 2 x 2 D in 16 bits (6.1 KB at D = 1536) or 3 D + 4 to INT8, while a frame's
shift and scale stay in the caches. In PyTorch's own operators (norm; 1 + scale; product; sum) a row crosses memory
six times, 12 D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.quantize import quantize_rows, quantize_tile
from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS, check_rows, modulation_strides

TILES: Tiles = {sm: Tile(m=2, n=2048, warps=8) for sm in ARCHITECTURES} | {INTERPRETER: Tile(m=4, n=2048, warps=1)}
"""`m` rows of a frame, each of at most `n` channels: two, so that loading a frame's modulation serves both."""


def layernorm_modulate_reference(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """What the transformer computes before its linear layers."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def layernorm_modulate_int8_reference(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The same in fp32, cut to 255 levels: int8 [B, F, T, D] and fp32 scales [B, F, T]."""
    return quantize_rows(layernorm_modulate_reference(x.float(), shift.float(), scale.float(), eps))


@triton.jit
def _layernorm_modulate_kernel(
    p_x: tl.tensor, p_shift: tl.tensor, p_scale: tl.tensor, p_out: tl.tensor, p_scales: tl.tensor, F: tl.tensor,
    T: tl.tensor, shift_stream: tl.tensor, shift_frame: tl.tensor, scale_stream: tl.tensor,
    scale_frame: tl.tensor, eps: tl.tensor, D: tl.constexpr, INT8: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """A program: BLOCK_T rows of one frame."""
    i_frame = tl.program_id(1).to(tl.int64)
    i_stream, i_in_stream = i_frame // F, i_frame % F
    o_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_d = tl.arange(0, BLOCK_D)
    m_t, m_d = o_t < T, o_d < D
    o_row = i_frame * T + o_t
    o_x = o_row[:, None] * D + o_d[None, :]
    m_x = m_t[:, None] & m_d[None, :]

    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    p_scale += i_stream * scale_stream + i_in_stream * scale_frame
    p_shift += i_stream * shift_stream + i_in_stream * shift_frame
    b_scale = tl.load(p_scale + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_shift = tl.load(p_shift + o_d, mask=m_d, other=0.0).to(tl.float32)

    b_centered = tl.where(m_x, b_x - (tl.sum(b_x, 1) / D)[:, None], 0.0)
    b_spread = tl.sqrt(tl.sum(b_centered * b_centered, 1) / D + eps)
    b_y = b_centered / b_spread[:, None] * (1.0 + b_scale)[None, :] + b_shift[None, :]
    if INT8:
        b_levels, b_scales = quantize_tile(tl.where(m_x, b_y, 0.0))
        tl.store(p_out + o_x, b_levels, mask=m_x)
        tl.store(p_scales + o_row, b_scales, mask=m_t)
    else:
        tl.store(p_out + o_x, b_y.to(p_out.dtype.element_ty), mask=m_x)


@torch.library.custom_op(
    "longtake::layernorm_modulate",
    mutates_args=(),
    schema="(Tensor x, Tensor shift, Tensor scale, float eps) -> Tensor",
)
def layernorm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """As `layernorm_modulate_reference`, with one rounding at the end instead of one per operator.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit, or a row is longer than the tile.

    """
    out = torch.empty_like(x)
    _launch(x, shift, scale, eps, out, None)
    return out


@torch.library.custom_op(
    "longtake::layernorm_modulate_int8",
    mutates_args=(),
    schema="(Tensor x, Tensor shift, Tensor scale, float eps) -> (Tensor, Tensor)",
)
def layernorm_modulate_int8(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `layernorm_modulate_int8_reference`. Raises like `layernorm_modulate`."""
    out = torch.empty_like(x, dtype=torch.int8)
    scales = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    _launch(x, shift, scale, eps, out, scales)
    return out, scales


@layernorm_modulate.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@layernorm_modulate_int8.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _launch(x: Tensor, shift: Tensor, scale: Tensor, eps: float, out: Tensor, scales: Tensor | None) -> None:
    check_rows("layernorm_modulate", x=x)
    shift_strides = modulation_strides("layernorm_modulate", x, "shift", shift)
    scale_strides = modulation_strides("layernorm_modulate", x, "scale", scale)
    batch, frames, tokens, dim = x.shape
    tile = tile_for(TILES, architecture(x.device), "layernorm_modulate")
    if dim > tile.n:
        raise ValueError(f"layernorm_modulate: rows of {dim} channels; its tile takes at most {tile.n}")
    _layernorm_modulate_kernel[(triton.cdiv(tokens, tile.m), batch * frames)](
        x, shift, scale, out, out if scales is None else scales,
        frames, tokens, *shift_strides, *scale_strides, eps,
        D=dim, INT8=scales is not None, BLOCK_T=tile.m,
        BLOCK_D=triton.next_power_of_2(dim), **tile.options,
    )  # fmt: skip


def aot_cases() -> Sequence[AotCase]:
    """Rows of the real model in bf16, and to INT8."""
    return [_case(sm, int8) for sm in ARCHITECTURES for int8 in (False, True)]


def _case(sm: int, int8: bool) -> AotCase:
    half, tile = FLOATS[torch.bfloat16], TILES[sm]
    pointers = {
        "p_x": half,
        "p_shift": half,
        "p_scale": half,
        "p_out": "*i8" if int8 else half,
        "p_scales": "*fp32",
    }
    strides = dict.fromkeys(("shift_stream", "shift_frame", "scale_stream", "scale_frame"), "i32")
    return AotCase(
        name=f"layernorm_modulate_int8_sm{sm}" if int8 else f"layernorm_modulate_sm{sm}",
        kernel=_layernorm_modulate_kernel,
        architecture=sm,
        tile=tile,
        arguments=pointers | {"F": "i32", "T": "i32"} | strides | {"eps": "fp32"},
        constants={"D": 1536, "INT8": int8, "BLOCK_T": tile.m, "BLOCK_D": tile.n},
        aligned=(*pointers, *strides),
    )
