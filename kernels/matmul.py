"""What kernels of products share: which program makes which tile, its sums, and how tensors are addressed.

    x       [M, K]   contiguous
    weight  [N, K]   contiguous, as torch.nn.Linear keeps it
    out     [M, N]   x w^T and what follows

Functions under `triton.jit` are parts of the kernels of `linear` and `linear_int8`, the others of their launches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.tiles import Tile, interpreted

BY_DESCRIPTOR = frozenset({90, 100})
"""Where tensors come and go by TMA, a program for each multiprocessor takes tile after tile, and a tile's loads
are under way while the one before is finished. Elsewhere a program makes one tile, through pointers."""

GROUP = 8
"""Tiles of rows whose programs run side by side, so that they find each other's weights in the L2 cache."""

PARTS = 4
"""Pieces in which a tile is finished: what follows the product finds its registers full of sums."""

INTERPRETED_PROGRAMS = 3
"""Fewer than tiles, as on a chip."""

TMA_BYTES = 16
"""What TMA demands of addresses and of the bytes of a row to be multiples of (CUDA driver API, tensor maps)."""


@triton.jit
def tile_at(
    i_tile: tl.tensor, M: tl.tensor, N: tl.tensor, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """The first row and column of a tile of the output."""
    rows, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    i_group, i_in_group = i_tile // (GROUP * columns), i_tile % (GROUP * columns)
    group_rows = tl.minimum(rows - i_group * GROUP, GROUP)
    row = (i_group * GROUP + i_in_group % group_rows) * BLOCK_M
    return row, i_in_group // group_rows * BLOCK_N


@triton.jit
def product(
    x: tl.tensor, weight: tl.tensor, row: tl.tensor, column: tl.tensor, M: tl.tensor, N: tl.tensor, K: tl.tensor,
    SUM: tl.constexpr, DESCRIPTORS: tl.constexpr, EVEN_K: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A tile of x w^T in the dtype SUM: fp32, or int32 of INT8."""
    o_k = tl.arange(0, BLOCK_K)
    if not DESCRIPTORS:
        # Rows beyond the last are earlier ones again: they are not stored, and loads need no mask.
        p_x = x + ((row + tl.arange(0, BLOCK_M)) % M).to(tl.int64)[:, None] * K + o_k[None, :]
        p_weight = weight + ((column + tl.arange(0, BLOCK_N)) % N).to(tl.int64)[None, :] * K + o_k[:, None]
    b_sum = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    for i_k in range(0, tl.cdiv(K, BLOCK_K)):
        if DESCRIPTORS:
            b_x = x.load([row, i_k * BLOCK_K])
            b_weight = weight.load([column, i_k * BLOCK_K]).T
        elif EVEN_K:
            b_x = tl.load(p_x + i_k * BLOCK_K)
            b_weight = tl.load(p_weight + i_k * BLOCK_K)
        else:
            m_k = o_k < K - i_k * BLOCK_K
            b_x = tl.load(p_x + i_k * BLOCK_K, mask=m_k[None, :], other=0)
            b_weight = tl.load(p_weight + i_k * BLOCK_K, mask=m_k[:, None], other=0)
        if WIDEN:
            b_x, b_weight = b_x.to(tl.float32), b_weight.to(tl.float32)
        b_sum = tl.dot(b_x, b_weight, b_sum, input_precision="ieee", out_dtype=SUM)
    return b_sum


@triton.jit
def product_in_halves(
    x: tl.tensor, weight: tl.tensor, row: tl.tensor, column: tl.tensor, M: tl.tensor, N: tl.tensor, K: tl.tensor,
    EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, HALF: tl.constexpr, BLOCK_K: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """As `product` of INT8 through pointers, the left and the right half of a tile apart.

    Rows that are multiplied twice Triton does not prefetch from shared memory for the next step. Its prefetch of
    INT8, in 3.9 and on sm_80 and 89, keeps each byte in a register of its own: hundreds of spills.
    """
    o_k, o_half = tl.arange(0, BLOCK_K), column + tl.arange(0, HALF)
    # Rows beyond the last are earlier ones again, as in `product`.
    p_x = x + ((row + tl.arange(0, BLOCK_M)) % M).to(tl.int64)[:, None] * K + o_k[None, :]
    p_left = weight + (o_half % N).to(tl.int64)[None, :] * K + o_k[:, None]
    p_right = weight + ((o_half + HALF) % N).to(tl.int64)[None, :] * K + o_k[:, None]
    b_left, b_right = tl.zeros((BLOCK_M, HALF), tl.int32), tl.zeros((BLOCK_M, HALF), tl.int32)
    for i_k in range(0, tl.cdiv(K, BLOCK_K)):
        m_k = o_k < (BLOCK_K if EVEN_K else K - i_k * BLOCK_K)
        b_x = tl.load(p_x + i_k * BLOCK_K, mask=m_k[None, :], other=0)
        b_left_weight = tl.load(p_left + i_k * BLOCK_K, mask=m_k[:, None], other=0)
        b_right_weight = tl.load(p_right + i_k * BLOCK_K, mask=m_k[:, None], other=0)
        b_left = tl.dot(b_x, b_left_weight, b_left, out_dtype=tl.int32)
        b_right = tl.dot(b_x, b_right_weight, b_right, out_dtype=tl.int32)
    return b_left, b_right


@triton.jit
def quarters(b_x: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """A tile's columns in four parts, from left to right."""
    b_left, b_right = halves(b_x)
    return halves(b_left) + halves(b_right)


@triton.jit
def halves(b_x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """A tile's columns in two parts."""
    return tl.split(tl.permute(tl.reshape(b_x, (b_x.shape[0], 2, b_x.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def gelu_tile(b_x: tl.tensor) -> tl.tensor:
    """The tanh form, of fp32."""
    # x (1 + tanh(u)) / 2 = x sigmoid(2 u), which loses nothing where tanh is close to -1. exp(80) is finite.
    b_twice = 1.5957691216057308 * b_x * (1.0 + 0.044715 * b_x * b_x)
    return b_x * tl.sigmoid(tl.maximum(b_twice, -80.0))


@triton.jit
def store_tile(
    b_out: tl.tensor, row: tl.tensor, column: tl.tensor, out: tl.tensor, M: tl.tensor, N: tl.tensor,
    DESCRIPTORS: tl.constexpr,
) -> None:  # fmt: skip
    """Round a part of the output and write it where there is any."""
    if DESCRIPTORS:
        out.store([row, column], b_out.to(out.dtype))
    else:
        o_m, o_n = row + tl.arange(0, b_out.shape[0]), column + tl.arange(0, b_out.shape[1])
        o_out = o_m.to(tl.int64)[:, None] * N + o_n[None, :]
        m_out = (o_m < M)[:, None] & (o_n < N)[None, :]
        tl.store(out + o_out, b_out.to(out.dtype.element_ty), mask=m_out)


class Addressed(NamedTuple):
    """A product's tensors and its sizes M, N, K as a kernel takes them, its programs, and its constants."""

    x: Tensor | TensorDescriptor
    weight: Tensor | TensorDescriptor
    out: Tensor | TensorDescriptor
    sizes: tuple[int, int, int]
    programs: int
    constants: dict[str, int]


def addressed(op: str, chip: int, tile: Tile, x: Tensor, weight: Tensor, out: Tensor) -> Addressed:
    """How `chip` makes `out` [..., N] of x [..., K] and weight [N, K]. Raises ValueError where TMA cannot."""
    n, k = weight.shape
    m = x.numel() // k
    tiles = triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n)
    constants = _constants(chip, tile, k)
    if chip not in BY_DESCRIPTOR:
        return Addressed(x, weight, out, (m, n, k), tiles, constants)
    x_block, weight_block, out_block = _blocks(tile)
    described = _described(op, x, x_block), _described(op, weight, weight_block), _described(op, out, out_block)
    return Addressed(*described, (m, n, k), min(tiles, _multiprocessors(x.device)), constants)


def aot_types(chip: int, tile: Tile, operand: str, out: str) -> dict[str, str]:
    """What `addressed` hands a chip's kernel as x, weight and out, whose pointers are of these types."""
    types = dict(zip(("x", "weight", "out"), (operand, operand, out), strict=True))
    if chip not in BY_DESCRIPTOR:
        return types
    return {
        name: f"tensordesc<{pointer[1:]}[{rows}, {columns}]>"
        for (name, pointer), (rows, columns) in zip(types.items(), _blocks(tile), strict=True)
    }


def aot_constants(chip: int, tile: Tile) -> dict[str, int]:
    """What `addressed` has a chip's kernel compiled with, where every K is a multiple of the tile's."""
    return _constants(chip, tile, tile.k)


def aot_copy(chip: int) -> str:
    """The instruction that brings a chip its tiles."""
    return "UTMALDG" if chip in BY_DESCRIPTOR else "LDGSTS"


def _constants(chip: int, tile: Tile, k: int) -> dict[str, int]:
    return {
        "DESCRIPTORS": chip in BY_DESCRIPTOR, "EVEN_K": k % tile.k == 0,
        "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k, "GROUP": GROUP,
    }  # fmt: skip


def _blocks(tile: Tile) -> tuple[tuple[int, int], ...]:
    """What TMA moves at once of x, weight and out."""
    return (tile.m, tile.k), (tile.n, tile.k), (tile.m, tile.n // PARTS)


def _multiprocessors(device: torch.device) -> int:
    if interpreted():
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _described(op: str, x: Tensor, block: tuple[int, int]) -> TensorDescriptor:
    """`x` as rows, in blocks that TMA moves. Raises ValueError where it cannot."""
    rows = x.view(-1, x.shape[-1])
    if rows.stride(0) * x.element_size() % TMA_BYTES or x.data_ptr() % TMA_BYTES:
        raise ValueError(
            f"{op}: TMA needs rows of a multiple of {TMA_BYTES} bytes at such an address; got "
            f"{x.shape[-1]} channels of {x.dtype} at {x.data_ptr():#x}. Use the library's product for this layer"
        )
    return TensorDescriptor.from_tensor(rows, list(block))
