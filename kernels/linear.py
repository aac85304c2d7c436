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
from triton.tools.tensor_descriptor import TensorDescriptor

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
def _product(
    x: tl.tensor, weight: tl.tensor, row: tl.tensor, column: tl.tensor, M: tl.tensor, N: tl.tensor, K: tl.tensor,
    DESCRIPTORS: tl.constexpr, EVEN_K: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A tile of x w^T, fp32."""
    o_k = tl.arange(0, BLOCK_K)
    if not DESCRIPTORS:
        # Rows beyond the last are earlier ones again: they are not stored, and loads need no mask.
        p_x = x + ((row + tl.arange(0, BLOCK_M)) % M).to(tl.int64)[:, None] * K + o_k[None, :]
        p_weight = weight + ((column + tl.arange(0, BLOCK_N)) % N).to(tl.int64)[None, :] * K + o_k[:, None]
    b_sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i_k in range(0, tl.cdiv(K, BLOCK_K)):
        if DESCRIPTORS:
            b_x = x.load([row, i_k * BLOCK_K])
            b_weight = weight.load([column, i_k * BLOCK_K]).T
        elif EVEN_K:
            b_x = tl.load(p_x + i_k * BLOCK_K)
            b_weight = tl.load(p_weight + i_k * BLOCK_K)
        else:
            m_k = o_k < K - i_k * BLOCK_K
            b_x = tl.load(p_x + i_k * BLOCK_K, mask=m_k[None, :], other=0.0)
            b_weight = tl.load(p_weight + i_k * BLOCK_K, mask=m_k[:, None], other=0.0)
        if WIDEN:
            b_x, b_weight = b_x.to(tl.float32), b_weight.to(tl.float32)
        b_sum = tl.dot(b_x, b_weight, b_sum, input_precision="ieee")
    return b_sum


@triton.jit
def _finish(
    b_sum: tl.tensor, row: tl.tensor, column: tl.tensor, p_bias: tl.tensor, out: tl.tensor, M: tl.tensor,
    N: tl.tensor, DESCRIPTORS: tl.constexpr, GELU: tl.constexpr,
) -> None:  # fmt: skip
    """What follows the product, and the store."""
    o_m, o_n = row + tl.arange(0, b_sum.shape[0]), column + tl.arange(0, b_sum.shape[1])
    b_out = b_sum + tl.load(p_bias + o_n, mask=o_n < N, other=0.0).to(tl.float32)[None, :]
    if GELU:
        # x (1 + tanh(u)) / 2 = x sigmoid(2 u), which loses nothing where tanh is close to -1. exp(80) is finite.
        b_twice = 1.5957691216057308 * b_out * (1.0 + 0.044715 * b_out * b_out)
        b_out = b_out * tl.sigmoid(tl.maximum(b_twice, -80.0))
    if DESCRIPTORS:
        out.store([row, column], b_out.to(out.dtype))
    else:
        o_out = o_m.to(tl.int64)[:, None] * N + o_n[None, :]
        m_out = (o_m < M)[:, None] & (o_n < N)[None, :]
        tl.store(out + o_out, b_out.to(out.dtype.element_ty), mask=m_out)


@triton.jit
def _halves(b_x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The left and the right half of a tile."""
    return tl.split(tl.permute(tl.reshape(b_x, (b_x.shape[0], 2, b_x.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def _linear_kernel(
    x: tl.tensor, weight: tl.tensor, p_bias: tl.tensor, out: tl.tensor, M: tl.tensor, N: tl.tensor, K: tl.tensor,
    DESCRIPTORS: tl.constexpr, EVEN_K: tl.constexpr, WIDEN: tl.constexpr, GELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
) -> None:  # fmt: skip
    """A program: every so many tiles of the output. `x`, `weight`, `out`: descriptors or pointers."""
    rows, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    for i_tile in tl.range(tl.program_id(0), rows * columns, tl.num_programs(0), flatten=DESCRIPTORS):
        i_group, i_in_group = i_tile // (GROUP * columns), i_tile % (GROUP * columns)
        group_rows = tl.minimum(rows - i_group * GROUP, GROUP)
        row = (i_group * GROUP + i_in_group % group_rows) * BLOCK_M
        column = i_in_group // group_rows * BLOCK_N
        b_sum = _product(x, weight, row, column, M, N, K, DESCRIPTORS, EVEN_K, WIDEN, BLOCK_M, BLOCK_N, BLOCK_K)
        b_left, b_right = _halves(b_sum)
        parts = _halves(b_left) + _halves(b_right)
        for i_part in tl.static_range(4):
            left = column + i_part * (BLOCK_N // 4)
            _finish(parts[i_part], row, left, p_bias, out, M, N, DESCRIPTORS, GELU)


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
    (n, k), m = weight.shape, x.numel() // x.shape[-1]
    tiles = triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n)
    operands: tuple[Tensor | TensorDescriptor, ...] = (x, weight, out)
    if chip in BY_DESCRIPTOR:
        blocks = ((tile.m, tile.k), (tile.n, tile.k), (tile.m, tile.n // PARTS))
        operands = tuple(_described(op, t, block) for t, block in zip(operands, blocks, strict=True))
        tiles = min(tiles, _multiprocessors(x.device))
    x_operand, weight_operand, out_operand = operands
    _linear_kernel[(tiles,)](
        x_operand, weight_operand, bias, out_operand, m, n, k,
        DESCRIPTORS=chip in BY_DESCRIPTOR, EVEN_K=k % tile.k == 0,
        WIDEN=interpreted() and x.dtype == torch.bfloat16, GELU=gelu,
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, GROUP=GROUP, **tile.options,
    )  # fmt: skip
    return out


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
    whole, by_descriptor = dtype == torch.float32, sm in BY_DESCRIPTOR
    tile, pointer = (TILES_FP32 if whole else TILES)[sm], FLOATS[dtype]
    blocks = {"x": (tile.m, tile.k), "weight": (tile.n, tile.k), "out": (tile.m, tile.n // PARTS)}
    types = dict.fromkeys(("x", "weight", "p_bias", "out"), pointer)
    if by_descriptor:
        types |= {
            operand: f"tensordesc<{pointer[1:]}[{rows}, {columns}]>" for operand, (rows, columns) in blocks.items()
        }
    product = {90: "HGMMA", 100: "UTCHMMA"}.get(sm, "HMMA")
    copy = "UTMALDG" if by_descriptor else "LDGSTS"
    pointers = [operand for operand, kind in types.items() if kind == pointer]
    return AotCase(
        name=name,
        kernel=_linear_kernel,
        architecture=sm,
        tile=tile,
        arguments=types | dict.fromkeys(("M", "N", "K"), "i32"),
        constants={
            "DESCRIPTORS": by_descriptor, "EVEN_K": True, "WIDEN": False, "GELU": gelu,
            "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k, "GROUP": GROUP,
        },
        aligned=(*pointers, "N", "K"),
        needs=(copy,) if whole else (product, copy),
    )  # fmt: skip
