"""Attentions of the same queries over different parts of the keys, merged by the logarithms of their sums.

weight_i = 2^(log_sums_i - max log_sums);  out = sum(weight_i * parts_i) / sum(weight_i)

parts     [N, ROWS, D]   fp32
log_sums  [N, ROWS]      fp32, of base 2; -inf for a part without keys
out       [ROWS, D]
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture

TILES_MERGE: Tiles = dict.fromkeys((INTERPRETER, *ARCHITECTURES), Tile(16, 1, warps=4))
"""Of rows; a row is a query's head."""

MERGE_STEPS = 1.7
"""What a part costs in merging a tile: its time in units of a key tile's.

128 x 128 fp32 written and read at 4.1 TB/s by all 132 SMs: 4.2 us; 128 x 128 keys at 450 TFLOP/s by all: 2.5 us.
Arithmetic for an H200, not measured.
"""


@triton.jit
def head_mask(m_rows: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr) -> tl.tensor:
    """Which of BLOCK_D channels of rows [M] there are; the same for all where a head has so many."""
    m_x = m_rows[:, None]
    if D < BLOCK_D:
        m_x = m_x & (tl.arange(0, BLOCK_D) < D)[None, :]
    return m_x


@triton.jit(do_not_specialize=["ROWS"])
def _merge_kernel(
    p_parts: tl.tensor, p_log_sums: tl.tensor, p_out: tl.tensor, ROWS: tl.tensor,
    D: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """BLOCK_M of ROWS rows [D], each the mean of its parts by the powers of two of their log sums."""
    o_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_m = o_m < ROWS
    m_x = head_mask(m_m, D, BLOCK_D)
    b_most = tl.full([BLOCK_M], -float("inf"), tl.float32)
    for i_split in tl.static_range(SPLITS):
        b_most = tl.maximum(b_most, tl.load(p_log_sums + i_split * ROWS.to(tl.int64) + o_m, mask=m_m, other=0.0))
    b_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    for i_split in tl.static_range(SPLITS):
        o_row = i_split * ROWS.to(tl.int64) + o_m
        b_weight = tl.exp2(tl.load(p_log_sums + o_row, mask=m_m, other=0.0) - b_most)
        b_part = tl.load(p_parts + o_row[:, None] * D + o_d[None, :], mask=m_x, other=0.0)
        b_out += b_weight[:, None] * b_part
        b_sum += b_weight
    p_rows = p_out + o_m[:, None] * D + o_d[None, :]
    tl.store(p_rows, (b_out / b_sum[:, None]).to(p_out.dtype.element_ty), mask=m_x)


def merge_splits_reference(parts: Tensor, log_sums: Tensor, dtype: torch.dtype) -> Tensor:
    """The same in plain PyTorch."""
    weights = torch.softmax(log_sums * math.log(2), dim=0).unsqueeze(-1)
    return (weights * parts).sum(0).to(dtype)


def merge_splits(parts: Tensor, log_sums: Tensor, output: Tensor) -> None:
    """Write the merged parts [N, ..., D] into `output` [..., D], in their order and without atomics."""
    splits, dim = parts.shape[0], parts.shape[-1]
    rows, tile = output.numel() // dim, TILES_MERGE[architecture(output.device)]
    _merge_kernel[(triton.cdiv(rows, tile.m),)](
        parts, log_sums, output, rows, D=dim, SPLITS=splits, BLOCK_M=tile.m,
        BLOCK_D=triton.next_power_of_2(dim), **tile.options,
    )  # fmt: skip


def merge_case(sm: int) -> AotCase:
    """Heads of the real model in bf16."""
    tile = TILES_MERGE[sm]
    pointers = {"p_parts": "*fp32", "p_log_sums": "*fp32", "p_out": "*bf16"}
    return AotCase(
        name=f"window_attention_merge_sm{sm}",
        kernel=_merge_kernel,
        architecture=sm,
        tile=tile,
        arguments=pointers | {"ROWS": "i32"},
        constants={"D": 128, "SPLITS": 2, "BLOCK_M": tile.m, "BLOCK_D": 128},
        aligned=tuple(pointers),
    )
