"""A branch added to the stream of rows, through the gate of the row's frame.

    out[b, f, t] = x[b, f, t] + y[b, f, t] * gate[b, f]

    x, y, out  [B, F, T, D]   B streams, F frames of T tokens, D channels
    gate       [B, F, 1, D]   a view into the table of a layer's modulations

Bytes: two rows read and one written, 3 x 2 D in 16 bits (9.2 KB at D = 1536), a frame's gate from the caches. With
PyTorch's own operators (product; sum) it is 5 rows, 10 D. `kernels.linear` does the same behind a product and
saves reading and writing y too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS, check_rows, modulation_strides

TILES: Tiles = {sm: Tile(m=4, n=512, warps=4) for sm in ARCHITECTURES} | {INTERPRETER: Tile(m=8, n=128, warps=1)}
"""`m` rows of a frame by `n` channels: 16 of each tensor for a thread, in loads of 128 bits."""


def gated_residual_reference(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """What the transformer computes behind an attention and behind its feed-forward net."""
    return x + y * gate


@triton.jit
def _gated_residual_kernel(
    p_x: tl.tensor, p_y: tl.tensor, p_gate: tl.tensor, p_out: tl.tensor, F: tl.tensor, T: tl.tensor,
    gate_stream: tl.tensor, gate_frame: tl.tensor, D: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """A program: BLOCK_T rows of one frame, BLOCK_D of their channels."""
    i_frame = tl.program_id(1).to(tl.int64)
    o_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    m_x = (o_t < T)[:, None] & m_d[None, :]
    o_x = (i_frame * T + o_t)[:, None] * D + o_d[None, :]
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_y = tl.load(p_y + o_x, mask=m_x, other=0.0).to(tl.float32)
    p_gate += i_frame // F * gate_stream + i_frame % F * gate_frame
    b_gate = tl.load(p_gate + o_d, mask=m_d, other=0.0).to(tl.float32)
    tl.store(p_out + o_x, (b_x + b_y * b_gate[None, :]).to(p_out.dtype.element_ty), mask=m_x)


@torch.library.custom_op(
    "longtake::gated_residual", mutates_args=(), schema="(Tensor x, Tensor y, Tensor gate) -> Tensor"
)
def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """As `gated_residual_reference`, with one rounding at the end.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit.

    """
    check_rows("gated_residual", x=x, y=y)
    strides = modulation_strides("gated_residual", x, "gate", gate)
    batch, frames, tokens, dim = x.shape
    tile = tile_for(TILES, architecture(x.device), "gated_residual")
    out = torch.empty_like(x)
    _gated_residual_kernel[(triton.cdiv(tokens, tile.m), batch * frames, triton.cdiv(dim, tile.n))](
        x, y, gate, out, frames, tokens, *strides, D=dim, BLOCK_T=tile.m, BLOCK_D=tile.n, **tile.options
    )
    return out


@gated_residual.register_fake
def _(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return torch.empty_like(x)


def aot_cases() -> Sequence[AotCase]:
    """Rows of the real model in bf16."""
    half = FLOATS[torch.bfloat16]
    pointers = dict.fromkeys(("p_x", "p_y", "p_gate", "p_out"), half)
    strides = {"gate_stream": "i32", "gate_frame": "i32"}
    return [
        AotCase(
            name=f"gated_residual_sm{sm}",
            kernel=_gated_residual_kernel,
            architecture=sm,
            tile=TILES[sm],
            arguments=pointers | {"F": "i32", "T": "i32"} | strides,
            constants={"D": 1536, "BLOCK_T": TILES[sm].m, "BLOCK_D": TILES[sm].n},
            aligned=(*pointers, *strides),
        )
        for sm in ARCHITECTURES
    ]
