"""A linear layer of INT8 rows and weights, and the GELU that may follow it in the same kernel.

    linear_int8       (x w^T) x_scales weight_scales + bias
    linear_int8_gelu  gelu(that), the tanh form; then times factor, where there is one

    x              [..., K]   int8, contiguous, as `kernels.quantize` rounds rows
    x_scales       [...]      fp32
    weight         [N, K]     int8, contiguous
    weight_scales  [N]        fp32
    bias           [N]        fp32, fp16 or bf16
    factor         [N]        any of these: what the next layer's weights were divided by, turned over
    out            [..., N]   of the dtype of bias

Reference and library are those of `kernels.eight_bits`, which needs no Triton.

The product is exact: its sums are int32, which holds those of 131 072 channels. What follows is fp32 in one order
of operations, so that all implementations agree to its last place, and is rounded once at the end. A row comes out
the same whatever rows are beside it.

A block at 480x832 has 4680 tokens: with K = 1536 and N = 8960 that is 129 G operations, 195 us at the 661 TOP/s of
an RTX 4090's tensor cores, and 65 us at the 1979 TOP/s of an H200's, both by their data sheets.

Bytes of a call with M tokens, out in 16 bits: M K + N K + 2 M N + 4 M + 6 N, in that example 105 MB: 104 us of a
4090's memory, 22 us of an H200's. The library's product writes sums of 4 bytes, which are then read: 8 M N more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import matmul
from kernels.eight_bits import check_scaled
from kernels.matmul import gelu_tile, halves, product, product_in_halves, quarters, store_tile, tile_at
from kernels.tiles import INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS

TILES: Tiles = {
    80: Tile(m=256, n=128, k=64, warps=8, stages=5),
    89: Tile(m=256, n=128, k=64, warps=8, stages=4),
    90: Tile(m=128, n=256, k=128, warps=8, stages=4),
    120: Tile(m=256, n=128, k=64, warps=8, stages=4),
    INTERPRETER: Tile(m=32, n=64, k=32, warps=1),
}
"""None for sm_100, where Triton finds only an older chip's instruction for INT8."""

NOT_FOR_100 = "INT8 is not for sm_100, FP8 is: quantize the model to FP8 for it"


@triton.jit
def _linear_int8_kernel(
    x: tl.tensor, p_x_scales: tl.tensor, weight: tl.tensor, p_weight_scales: tl.tensor, p_bias: tl.tensor,
    p_factor: tl.tensor, out: tl.tensor, M: tl.tensor, N: tl.tensor, K: tl.tensor, DESCRIPTORS: tl.constexpr,
    EVEN_K: tl.constexpr, GELU: tl.constexpr, FACTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
) -> None:  # fmt: skip
    """A program: every so many tiles of the output. `x`, `weight`, `out`: descriptors or pointers."""
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for i_tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=DESCRIPTORS):
        row, column = tile_at(i_tile, M, N, BLOCK_M, BLOCK_N, GROUP)
        if DESCRIPTORS:
            b_sum = product(
                x, weight, row, column, M, N, K, tl.int32, DESCRIPTORS, EVEN_K, False, BLOCK_M, BLOCK_N, BLOCK_K
            )
            parts = quarters(b_sum)
        else:
            b_left, b_right = product_in_halves(
                x, weight, row, column, M, N, K, EVEN_K, BLOCK_M, BLOCK_N // 2, BLOCK_K
            )
            parts = halves(b_left) + halves(b_right)
        for i_part in tl.static_range(4):
            left = column + i_part * (BLOCK_N // 4)
            o_m, o_n = row + tl.arange(0, BLOCK_M), left + tl.arange(0, BLOCK_N // 4)
            b_x_scale = tl.load(p_x_scales + o_m, mask=o_m < M, other=0.0)
            b_weight_scale = tl.load(p_weight_scales + o_n, mask=o_n < N, other=0.0)
            b_bias = tl.load(p_bias + o_n, mask=o_n < N, other=0.0).to(tl.float32)
            b_out = parts[i_part].to(tl.float32) * b_x_scale[:, None] * b_weight_scale[None, :] + b_bias[None, :]
            if GELU:
                b_out = gelu_tile(b_out)
            if FACTOR:
                b_out *= tl.load(p_factor + o_n, mask=o_n < N, other=0.0).to(tl.float32)[None, :]
            store_tile(b_out, row, left, out, M, N, DESCRIPTORS)


@torch.library.custom_op(
    "longtake::linear_int8",
    mutates_args=(),
    schema="(Tensor x, Tensor x_scales, Tensor weight, Tensor weight_scales, Tensor bias) -> Tensor",
)
def linear_int8(x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor) -> Tensor:
    """As `scaled_linear_reference`.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit, TMA cannot address a tensor, or the chip is not
            made for INT8.

    """
    return _launch("linear_int8", x, x_scales, weight, weight_scales, bias)


@torch.library.custom_op(
    "longtake::linear_int8_gelu",
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor x_scales, Tensor weight, Tensor weight_scales, Tensor bias, Tensor? factor) -> Tensor"
    ),
)
def linear_int8_gelu(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor, factor: Tensor | None
) -> Tensor:
    """As `scaled_linear_gelu_reference`. Raises like `linear_int8`."""
    return _launch("linear_int8_gelu", x, x_scales, weight, weight_scales, bias, factor, gelu=True)


@linear_int8.register_fake
@linear_int8_gelu.register_fake
def _(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor, factor: Tensor | None = None
) -> Tensor:
    return bias.new_empty((*x.shape[:-1], weight.shape[0]))


def _launch(
    op: str, x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor,
    factor: Tensor | None = None, *, gelu: bool = False,
) -> Tensor:  # fmt: skip
    check_scaled(op, torch.int8, x, x_scales, weight, weight_scales, bias, factor)
    chip = architecture(x.device)
    tile = tile_for(TILES, chip, op, NOT_FOR_100)
    out = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=bias.dtype, device=x.device)
    given = matmul.addressed(op, chip, tile, x, weight, out)
    _linear_int8_kernel[(given.programs,)](
        given.x, x_scales, given.weight, weight_scales, bias, bias if factor is None else factor, given.out,
        *given.sizes, **given.constants, GELU=gelu, FACTOR=factor is not None, **tile.options,
    )  # fmt: skip
    return out


FORMS = {
    "linear_int8": {"GELU": False, "FACTOR": False},
    "linear_int8_gelu": {"GELU": True, "FACTOR": False},
    "linear_int8_gelu_factor": {"GELU": True, "FACTOR": True},
}
"""Those that layers use, and the kernel's flags for each."""


def aot_cases() -> Sequence[AotCase]:
    """The real model in bf16 and in fp32: every K is a multiple of the tiles'."""
    names = {torch.bfloat16: "", torch.float32: "_fp32"}
    return [
        _case(f"{form}{suffix}_sm{sm}", sm, dtype, flags)
        for sm in TILES
        if sm != INTERPRETER
        for dtype, suffix in names.items()
        for form, flags in FORMS.items()
    ]


def _case(name: str, sm: int, dtype: torch.dtype, flags: dict[str, bool]) -> AotCase:
    tile, half = TILES[sm], FLOATS[dtype]
    types = matmul.aot_types(sm, tile, "*i8", half)
    types |= {"p_x_scales": "*fp32", "p_weight_scales": "*fp32", "p_bias": half, "p_factor": "*fp32"}
    return AotCase(
        name=name,
        kernel=_linear_int8_kernel,
        architecture=sm,
        tile=tile,
        arguments=types | dict.fromkeys(("M", "N", "K"), "i32"),
        constants=matmul.aot_constants(sm, tile) | flags,
        aligned=(*(name for name, kind in types.items() if kind.startswith("*")), "N", "K"),
        needs=("IGMMA" if sm == 90 else "IMMA", matmul.aot_copy(sm)),
    )
