"""RMS norm of a row over all heads, with weights: queries on their way to a prompt, which are not turned.

    out[b, t] = x[b, t] / sqrt(mean(x[b, t] ** 2) + eps) * weight

    x       [B, T, C]   B streams of T rows, as a linear layer gives them; rows evenly spaced
    weight  [C]
    out     [B, T, C]   contiguous, of the dtype of x

Bytes: a row is read and written once, 4 C in 16 bits (6.1 KB at C = 1536). In PyTorch's own operators, which go
through fp32, it is 36 C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS

TILES: Tiles = {sm: Tile(m=2, n=2048, warps=8) for sm in ARCHITECTURES} | {INTERPRETER: Tile(m=4, n=2048, warps=1)}
"""`m` rows of at most `n` channels."""


@triton.jit
def _rms_norm_kernel(
    p_x: tl.tensor, p_weight: tl.tensor, p_out: tl.tensor, ROWS: tl.tensor, row_stride: tl.tensor, eps: tl.tensor,
    C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """A program: BLOCK_M rows."""
    o_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < C
    m_x = (o_m < ROWS)[:, None] & m_c[None, :]
    b_x = tl.load(p_x + o_m[:, None] * row_stride + o_c[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_weight = tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_size = tl.sqrt(tl.sum(b_x * b_x, 1) / C + eps)
    b_out = b_x * (1.0 / b_size)[:, None] * b_weight[None, :]
    tl.store(p_out + o_m[:, None] * C + o_c[None, :], b_out.to(p_out.dtype.element_ty), mask=m_x)


@torch.library.custom_op(
    "longtake::rms_norm", mutates_args=(), schema="(Tensor x, Tensor weight, float eps) -> Tensor"
)
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `kernels.token_rows.rms_norm_reference`, with one rounding at the end.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit, or a row is longer than the tile.

    """
    check_projections("rms_norm", {"x": x}, {"weight": weight})
    batch, tokens, channels = x.shape
    tile = tile_for(TILES, architecture(x.device), "rms_norm")
    if channels > tile.n:
        raise ValueError(f"rms_norm: rows of {channels} channels; its tile takes at most {tile.n}")
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _rms_norm_kernel[(triton.cdiv(batch * tokens, tile.m),)](
        x, weight, out, batch * tokens, x.stride(1), eps,
        C=channels, BLOCK_M=tile.m, BLOCK_C=triton.next_power_of_2(channels), **tile.options,
    )  # fmt: skip
    return out


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def check_projections(op: str, rows: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless rows [B, T, C] are alike and evenly spaced, and weights [C] fit them."""
    first = next(iter(rows.values()))
    for name, x in rows.items():
        if x.dtype not in FLOATS or (x.shape, x.dtype, x.device) != (first.shape, first.dtype, first.device):
            raise ValueError(
                f"{op}: {name} is {list(x.shape)} {x.dtype} on {x.device}; rows are alike and one of "
                f"{[str(dtype) for dtype in FLOATS]}"
            )
        if x.dim() != 3 or 0 in x.shape or not _evenly_spaced(x):
            raise ValueError(
                f"{op}: {name} must be [B, T, channels], its rows whole and evenly spaced; got {list(x.shape)} "
                f"with strides {list(x.stride())}"
            )
    for name, x in weights.items():
        if (
            x.shape != first.shape[2:]
            or not x.is_contiguous()
            or (x.dtype, x.device) != (first.dtype, first.device)
        ):
            raise ValueError(
                f"{op}: {name} must be contiguous [{first.shape[2]}] {first.dtype} on {first.device}; got "
                f"{list(x.shape)} {x.dtype} on {x.device}"
            )


def _evenly_spaced(x: Tensor) -> bool:
    return x.stride(2) == 1 and (x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1))


def aot_cases() -> Sequence[AotCase]:
    """Rows of the real model in bf16."""
    pointers = dict.fromkeys(("p_x", "p_weight", "p_out"), FLOATS[torch.bfloat16])
    return [
        AotCase(
            name=f"rms_norm_sm{sm}",
            kernel=_rms_norm_kernel,
            architecture=sm,
            tile=TILES[sm],
            arguments=pointers | {"ROWS": "i32", "row_stride": "i32", "eps": "fp32"},
            constants={"C": 1536, "BLOCK_M": TILES[sm].m, "BLOCK_C": TILES[sm].n},
            aligned=(*pointers, "row_stride"),
        )
        for sm in ARCHITECTURES
    ]
