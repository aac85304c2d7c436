"""Two attentions of the same queries over different keys, made one by the logarithms of their sums.

    share = sigmoid(second_sums - first_sums);  out = first + (second - first) * share

    first, second            [T, H, D]   attentions over the one part of the keys, and over the other
    first_sums, second_sums  [H, T]      fp32, natural logarithms of the sums of exponentials
    out                      [T, H, D]   of the dtype of the parts

Bytes: two parts read and one written, 6 H D a token in 16 bits (9.2 KB at 12 heads of 128), and 8 H for the sums.
In PyTorch's own operators, which go through fp32, it is 32 H D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS

TILES: Tiles = {sm: Tile(m=16, n=128, warps=4) for sm in ARCHITECTURES} | {INTERPRETER: Tile(m=64, n=128, warps=1)}
"""`m` rows of at most `n` channels; a row is a token's head."""


def merge_reference(first: Tensor, second: Tensor, first_sums: Tensor, second_sums: Tensor) -> Tensor:
    """In fp32."""
    share = torch.sigmoid(second_sums - first_sums).T.unsqueeze(-1)
    return torch.lerp(first.float(), second.float(), share).to(first.dtype)


@triton.jit
def _merge_kernel(
    p_first: tl.tensor, p_second: tl.tensor, p_first_sums: tl.tensor, p_second_sums: tl.tensor, p_out: tl.tensor,
    T: tl.tensor, H: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """A program: BLOCK_M rows."""
    o_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_m = o_m < T * H
    o_sum = o_m % H * T + o_m // H
    o_x = o_m[:, None] * D + o_d[None, :]
    m_x = m_m[:, None] & (o_d < D)[None, :]
    b_first_sum = tl.load(p_first_sums + o_sum, mask=m_m, other=0.0)
    b_second_sum = tl.load(p_second_sums + o_sum, mask=m_m, other=0.0)
    b_most = tl.maximum(b_first_sum, b_second_sum)
    b_weight = tl.exp(b_second_sum - b_most)
    b_share = b_weight / (tl.exp(b_first_sum - b_most) + b_weight)
    b_first = tl.load(p_first + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_second = tl.load(p_second + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_out = b_first + (b_second - b_first) * b_share[:, None]
    tl.store(p_out + o_x, b_out.to(p_out.dtype.element_ty), mask=m_x)


@torch.library.custom_op(
    "longtake::merge",
    mutates_args=(),
    schema="(Tensor first, Tensor second, Tensor first_sums, Tensor second_sums) -> Tensor",
)
def merge(first: Tensor, second: Tensor, first_sums: Tensor, second_sums: Tensor) -> Tensor:
    """As `merge_reference`.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit, or a head is wider than the tile.

    """
    _check(first, second, first_sums, second_sums)
    tokens, heads, dim = first.shape
    tile = tile_for(TILES, architecture(first.device), "merge")
    if dim > tile.n:
        raise ValueError(f"merge: heads of {dim} channels; its tile takes at most {tile.n}")
    out = torch.empty_like(first)
    _merge_kernel[(triton.cdiv(tokens * heads, tile.m),)](
        first, second, first_sums, second_sums, out, tokens,
        H=heads, D=dim, BLOCK_M=tile.m, BLOCK_D=triton.next_power_of_2(dim), **tile.options,
    )  # fmt: skip
    return out


@merge.register_fake
def _(first: Tensor, second: Tensor, first_sums: Tensor, second_sums: Tensor) -> Tensor:
    return torch.empty_like(first)


def _check(first: Tensor, second: Tensor, first_sums: Tensor, second_sums: Tensor) -> None:
    if first.dtype not in FLOATS or first.dim() != 3 or 0 in first.shape:
        raise ValueError(f"merge: no kernel for parts {list(first.shape)} of {first.dtype}; they are [T, H, D]")
    sums = first.shape[1::-1]
    wanted = {"first": (first, first.shape, first.dtype), "second": (second, first.shape, first.dtype)}
    wanted |= {"first_sums": (first_sums, sums, torch.float32), "second_sums": (second_sums, sums, torch.float32)}
    for name, (x, shape, dtype) in wanted.items():
        if (x.shape, x.dtype, x.device) != (shape, dtype, first.device) or not x.is_contiguous():
            raise ValueError(
                f"merge: {name} must be contiguous {list(shape)} of {dtype} on {first.device}; got "
                f"{list(x.shape)} of {x.dtype} on {x.device} with strides {list(x.stride())}"
            )


def aot_cases() -> Sequence[AotCase]:
    """A block of the real model in bf16."""
    half = FLOATS[torch.bfloat16]
    pointers = {
        "p_first": half,
        "p_second": half,
        "p_first_sums": "*fp32",
        "p_second_sums": "*fp32",
        "p_out": half,
    }
    return [
        AotCase(
            name=f"merge_sm{sm}",
            kernel=_merge_kernel,
            architecture=sm,
            tile=TILES[sm],
            arguments=pointers | {"T": "i32"},
            constants={"H": 12, "D": 128, "BLOCK_M": TILES[sm].m, "BLOCK_D": 128},
            aligned=tuple(pointers),
        )
        for sm in ARCHITECTURES
    ]
