"""A linear layer, and the GELU that may follow it in the same kernel.

    linear       x w^T + bias
    linear_gelu  gelu(x w^T + bias), the tanh form

    x       [..., K]   contiguous
    weight  [N, K]     as torch.nn.Linear keeps it, contiguous
    bias    [N]
    out     [..., N]   of the dtype of x

Sums are fp32, and the only rounding is at the end. A block at 480x832 has 4680 tokens: with K = 1536 and N = 8960
that is 129 GFLOP, 163 us at the 788 TFLOP/s that cuBLAS reached on an H200.

Bytes of a call with M tokens, in 16 bits: 2 (M K + N K + M N), in that example 126 MB or 26 us of an H200's
memory. Behind the library's product with bias, PyTorch's own GELU moves 4 M N more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.matmul import (
    addressed,
    aot_constants,
    aot_copy,
    aot_types,
    gelu_tile,
    product,
    quarters,
    store_tile,
    tile_at,
)
from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, interpreted, tile_for
from kernels.token_rows import FLOATS

TILES: Tiles = {
    80: Tile(m=128, n=256, k=64, warps=8, stages=3),
    89: Tile(m=128, n=256, k=64, warps=8, stages=3),
    90: Tile(m=128, n=256, k=64, warps=8, stages=4),
    100: Tile(m=128, n=256, k=64, warps=8, stages=4),
    120: Tile(m=128, n=256, k=64, warps=8, stages=3),
    INTERPRETER: Tile(m=32, n=64, k=32, warps=1),
}

TILES_FP32: Tiles = {sm: Tile(m=64, n=64, k=32, warps=8, stages=2) for sm in ARCHITECTURES} | {
    INTERPRETER: TILES[INTERPRETER]
}
"""Small, because fp32 is multiplied without tensor cores: to compare with, not to be fast."""


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's own."""
    return F.linear(x, weight, bias)


def linear_gelu_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The first half of the transformer's feed-forward net."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def linear_gelu_library(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `linear_gelu_reference`; in bf16 on CUDA the library's product does both, rounding once.

    There its GELU is of the tanh form. On a CPU the same function has the erf form, 5e-4 off, and is not used.
    """
    # Dry runs on meta stand for CUDA.
    if x.dtype != torch.bfloat16 or x.device.type not in ("cuda", "meta"):
        return linear_gelu_reference(x, weight, bias)
    rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return rows.unflatten(0, x.shape[:-1])


@triton.jit
def _linear_kernel(
    x: tl.tensor, weight: tl.tensor, p_bias: tl.tensor, out: tl.tensor, M: tl.tensor, N: tl.tensor, K: tl.tensor,
    DESCRIPTORS: tl.constexpr, EVEN_K: tl.constexpr, WIDEN: tl.constexpr, GELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
) -> None:  # fmt: skip
    """A program: every so many tiles of the output. `x`, `weight`, `out`: descriptors or pointers."""
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for i_tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=DESCRIPTORS):
        row, column = tile_at(i_tile, M, N, BLOCK_M, BLOCK_N, GROUP)
        b_sum = product(
            x, weight, row, column, M, N, K, tl.float32, DESCRIPTORS, EVEN_K, WIDEN, BLOCK_M, BLOCK_N, BLOCK_K
        )
        parts = quarters(b_sum)
        for i_part in tl.static_range(4):
            left = column + i_part * (BLOCK_N // 4)
            o_n = left + tl.arange(0, BLOCK_N // 4)
            b_bias = tl.load(p_bias + o_n, mask=o_n < N, other=0.0).to(tl.float32)
            b_out = parts[i_part] + b_bias[None, :]
            if GELU:
                b_out = gelu_tile(b_out)
            store_tile(b_out, row, left, out, M, N, DESCRIPTORS)


@torch.library.custom_op(
    "longtake::linear", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor bias) -> Tensor"
)
def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `linear_reference`.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit, or TMA cannot address a tensor.

    """
    return _launch("linear", x, weight, bias)


@torch.library.custom_op(
    "longtake::linear_gelu", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor bias) -> Tensor"
)
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `linear_gelu_reference`. Raises like `linear`."""
    return _launch("linear_gelu", x, weight, bias, gelu=True)


@linear.register_fake
@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _launch(op: str, x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    _check(op, x, weight, bias)
    out = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device=x.device)
    chip = architecture(x.device)
    tile = tile_for(TILES_FP32 if x.dtype == torch.float32 else TILES, chip, "linear")
    given = addressed(op, chip, tile, x, weight, out)
    _linear_kernel[(given.programs,)](
        given.x, given.weight, bias, given.out, *given.sizes, **given.constants,
        WIDEN=interpreted() and x.dtype == torch.bfloat16, GELU=gelu, **tile.options,
    )  # fmt: skip
    return out


def _check(op: str, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if x.dtype not in FLOATS or x.numel() == 0 or not x.is_contiguous():
        raise ValueError(
            f"{op}: x must be contiguous, not empty and one of {[str(dtype) for dtype in FLOATS]}; got "
            f"{list(x.shape)} {x.dtype} with strides {list(x.stride())}"
        )
    if weight.dim() != 2 or not weight.is_contiguous() or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"{op}: weight must be contiguous [N, {x.shape[-1]}]; got {list(weight.shape)} with strides "
            f"{list(weight.stride())}"
        )
    if bias.shape != weight.shape[:1] or not bias.is_contiguous():
        raise ValueError(f"{op}: bias must be contiguous [{weight.shape[0]}]; got {list(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if (tensor.dtype, tensor.device) != (x.dtype, x.device):
            raise ValueError(f"{op}: {name} is {tensor.dtype} on {tensor.device}, x {x.dtype} on {x.device}")


def aot_cases() -> Sequence[AotCase]:
    """The real model: every K is a multiple of the tiles'."""
    forms = {"linear": False, "linear_gelu": True}
    fp32 = [_case(f"linear_fp32_sm{sm}", sm, torch.float32, gelu=False) for sm in ARCHITECTURES]
    half = torch.bfloat16
    return fp32 + [_case(f"{name}_sm{sm}", sm, half, gelu=forms[name]) for sm in ARCHITECTURES for name in forms]


def _case(name: str, sm: int, dtype: torch.dtype, *, gelu: bool) -> AotCase:
    whole = dtype == torch.float32
    tile, pointer = (TILES_FP32 if whole else TILES)[sm], FLOATS[dtype]
    types = aot_types(sm, tile, pointer, pointer) | {"p_bias": pointer}
    instruction, copy = {90: "HGMMA", 100: "UTCHMMA"}.get(sm, "HMMA"), aot_copy(sm)
    return AotCase(
        name=name,
        kernel=_linear_kernel,
        architecture=sm,
        tile=tile,
        arguments=types | dict.fromkeys(("M", "N", "K"), "i32"),
        constants=aot_constants(sm, tile) | {"WIDEN": False, "GELU": gelu},
        aligned=(*(name for name, kind in types.items() if kind == pointer), "N", "K"),
        needs=(copy,) if whole else (instruction, copy),
    )
