"""Rows as INT8, each with a scale of its own: the rule of `kernels.eight_bits` in kernels, and for the KV pool.

    x        [..., D]   fp32, fp16 or bf16, contiguous
    rounded  [..., D]   int8
    scales   [...]      fp32

The kernel's bytes of a row in 16 bits: 3 D + 4, at D = 8960 26.9 KB. 4680 of these are 126 MB, 26 us of an H200's
memory. PyTorch's own operators, which make fp32 of it first, move some 40 D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import eight_bits
from kernels.eight_bits import quantize_rows as quantize_rows
from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS

INT8_MAX = tl.constexpr(eight_bits.INT8_MAX)
MIN_AMAX = tl.constexpr(eight_bits.MIN_AMAX)

TILES: Tiles = {sm: Tile(m=2, n=2048, warps=8) for sm in ARCHITECTURES} | {INTERPRETER: Tile(m=4, n=2048, warps=1)}
"""`m` rows of at most `n` channels, as a token has."""

TILES_WIDE: Tiles = {sm: Tile(m=1, n=16384, warps=8) for sm in ARCHITECTURES} | {
    INTERPRETER: Tile(m=1, n=16384, warps=1)
}
"""Wider ones, as between the two layers of the feed-forward net."""


@triton.jit
def scales_of(b_amax: tl.tensor) -> tl.tensor:
    """The scales [M] of rows whose largest channels are `b_amax` [M], fp32: as `int8_scales`, to the bit."""
    # In fp64 the product with 1 / 127 rounds to the same fp32 as the quotient, which lies 2^-32 from any middle.
    return (tl.maximum(b_amax, MIN_AMAX).to(tl.float64) * (1.0 / INT8_MAX)).to(tl.float32)


@triton.jit
def levels_of(b_x: tl.tensor, b_scale: tl.tensor) -> tl.tensor:
    """INT8 of fp32 rows [M, D] by their scales [M]: as `int8_levels`, to the bit."""
    return tl.floor(tl.div_rn(b_x, b_scale[:, None]) + 0.5).to(tl.int8)


@triton.jit
def quantize_tile(b_x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """INT8 of rows [M, D], and their scales [M]; see `quantize_rows`, whose quotients are rounded as these."""
    b_x = b_x.to(tl.float32)
    b_scale = scales_of(tl.max(tl.abs(b_x), 1))
    return levels_of(b_x, b_scale), b_scale


@triton.jit
def _quantize_rows_kernel(
    p_x: tl.tensor, p_rounded: tl.tensor, p_scales: tl.tensor, M: tl.tensor, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """A program: BLOCK_M rows."""
    o_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    o_x = o_m[:, None] * D + o_d[None, :]
    m_x = (o_m < M)[:, None] & (o_d < D)[None, :]
    b_rounded, b_scale = quantize_tile(tl.load(p_x + o_x, mask=m_x, other=0.0))
    tl.store(p_rounded + o_x, b_rounded, mask=m_x)
    tl.store(p_scales + o_m, b_scale, mask=o_m < M)


@torch.library.custom_op("longtake::quantize_rows", mutates_args=(), schema="(Tensor x) -> (Tensor, Tensor)")
def quantize_rows_triton(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `quantize_rows`, to the bit.

    Raises:
        ValueError: x is not contiguous, empty, of another dtype, or has more channels than the wide tile.

    """
    if x.dtype not in FLOATS or x.numel() == 0 or not x.is_contiguous():
        raise ValueError(
            f"quantize_rows: x must be contiguous, not empty and one of {[str(dtype) for dtype in FLOATS]}; got "
            f"{list(x.shape)} {x.dtype} with strides {list(x.stride())}"
        )
    dim = x.shape[-1]
    tile = _tile(architecture(x.device), dim)
    rounded, scales = torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)
    rows = scales.numel()
    _quantize_rows_kernel[(triton.cdiv(rows, tile.m),)](
        x, rounded, scales, rows, D=dim, BLOCK_M=tile.m, BLOCK_D=triton.next_power_of_2(dim), **tile.options
    )
    return rounded, scales


@quantize_rows_triton.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _tile(chip: int, dim: int) -> Tile:
    tile, wide = (tile_for(tiles, chip, "quantize_rows") for tiles in (TILES, TILES_WIDE))
    if dim > wide.n:
        raise ValueError(f"quantize_rows: rows of {dim} channels; its tile takes at most {wide.n}")
    return tile if dim <= tile.n else wide


def quantize_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """INT8 keys or values and their scales as the KV pool has them.

    Args:
        x: [layers, ..., H, D], any floating dtype.

    Returns:
        INT8 of that shape, and fp32 scales [layers, H, ...]; a head is about its INT8 times its scale.

    """
    rounded, scales = quantize_rows(x)
    return rounded, scales.movedim(-1, 1).contiguous()


def round_to_int8(x: Tensor) -> Tensor:
    """x [..., D] as its INT8 and scale say it, in fp32."""
    rounded, scales = quantize_rows(x)
    return rounded * scales.unsqueeze(-1)


def aot_cases() -> Sequence[AotCase]:
    """Rows of the real model in bf16 and fp32: of a token's channels, and of the feed-forward net's."""
    dtypes = {torch.bfloat16: "bf16", torch.float32: "fp32"}
    return [
        _case(f"quantize_rows_{dim}_{suffix}_sm{sm}", sm, dtype, dim)
        for sm in ARCHITECTURES
        for dim in (1536, 8960)
        for dtype, suffix in dtypes.items()
    ]


def _case(name: str, sm: int, dtype: torch.dtype, dim: int) -> AotCase:
    tile = _tile(sm, dim)
    pointers = {"p_x": FLOATS[dtype], "p_rounded": "*i8", "p_scales": "*fp32"}
    return AotCase(
        name=name,
        kernel=_quantize_rows_kernel,
        architecture=sm,
        tile=tile,
        arguments=pointers | {"M": "i32"},
        constants={"D": dim, "BLOCK_M": tile.m, "BLOCK_D": triton.next_power_of_2(dim)},
        aligned=tuple(pointers),
    )
