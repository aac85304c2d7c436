"""A branch added to the residual through its gate, and the LayerNorm that follows: one kernel for both.

    layernorm_modulate      layer_norm(x) * factor + shift
    add_layernorm_modulate  sum = x + branch * gate, and that of sum    the gate of the row's frame, or no gate
    add_layernorm           sum, and layer_norm(sum) * weight + bias
    ..._int8                what is normed to INT8, with a scale per token

    x, branch, sum       [B, F, T, D]   B rows, F frames of T tokens, D channels
    gate, shift, factor  [B, F, 1, D]   views into the table of a layer's modulations, or one expanded over frames
    weight, bias         [D]
    normed               [B, F, T, D]   of the dtype of x; or int8 and fp32 scales [B, F, T]: value = int8 * scale

All is computed in fp32, and what is normed is the sum before its own rounding.

Bytes of a token in 16 bits: with a branch two rows are read and two written, 8 D (12.3 KB at D = 1536); without,
one each, 4 D. INT8 is D less, and 4 for the scale. A frame's modulations stay in the caches. PyTorch's operators
(product; sum; norm; product; sum) move 22 D with a branch and a gate, 18 D with a branch alone and 12 D without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.quantize import quantize_rows, quantize_tile
from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS, check_rows, modulation_strides

TILES: Tiles = {sm: Tile(m=2, n=2048, warps=8) for sm in ARCHITECTURES} | {INTERPRETER: Tile(m=4, n=2048, warps=1)}
"""`m` tokens of a frame, each of at most `n` channels: two, so that loading a frame's modulation serves both."""


def layernorm_modulate_reference(x: Tensor, shift: Tensor, factor: Tensor, eps: float) -> Tensor:
    """What the transformer computes before its linear layers."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * factor + shift


def add_layernorm_modulate_reference(
    x: Tensor, branch: Tensor, gate: Tensor | None, shift: Tensor, factor: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """What it computes between a branch and the modulated linear layers that follow: the sum, and that normed."""
    added = x + (branch if gate is None else branch * gate)
    return added, layernorm_modulate_reference(added, shift, factor, eps)


def add_layernorm_reference(
    x: Tensor, branch: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The same with a LayerNorm that has weights, which comes before the attention to the prompt."""
    added = x + (branch if gate is None else branch * gate)
    return added, F.layer_norm(added, added.shape[-1:], weight, bias, eps)


def layernorm_modulate_int8_reference(
    x: Tensor, shift: Tensor, factor: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The same in fp32, cut to 255 levels: int8 [B, F, T, D] and fp32 scales [B, F, T]."""
    return quantize_rows(layernorm_modulate_reference(x.float(), shift.float(), factor.float(), eps))


def add_layernorm_modulate_int8_reference(
    x: Tensor, branch: Tensor, gate: Tensor | None, shift: Tensor, factor: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the dtype of x, and that normed and modulated as INT8 and scales, all from fp32."""
    added = x.float() + (branch.float() if gate is None else branch.float() * gate.float())
    return added.to(x.dtype), *layernorm_modulate_int8_reference(added, shift, factor, eps)


def add_layernorm_int8_reference(
    x: Tensor, branch: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with a LayerNorm that has weights."""
    return add_layernorm_modulate_int8_reference(x, branch, gate, bias, weight, eps)


@triton.jit
def _of_frame(
    p_x: tl.tensor, i_row: tl.tensor, i_frame: tl.tensor, row_stride: tl.tensor, frame_stride: tl.tensor,
    o_d: tl.tensor, m_d: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """A frame's gate, shift or factor [1, BLOCK_D], fp32."""
    b_x = tl.load(p_x + i_row * row_stride + i_frame * frame_stride + o_d, mask=m_d, other=0.0)
    return b_x.to(tl.float32)[None, :]


@triton.jit
def _layernorm_modulate_kernel(
    p_x: tl.tensor, p_branch: tl.tensor, p_shift: tl.tensor, p_factor: tl.tensor, p_gate: tl.tensor,
    p_sum: tl.tensor, p_out: tl.tensor, p_scales: tl.tensor, F: tl.tensor, T: tl.tensor, shift_row: tl.tensor,
    shift_frame: tl.tensor, factor_row: tl.tensor, factor_frame: tl.tensor, gate_row: tl.tensor,
    gate_frame: tl.tensor, eps: tl.tensor, D: tl.constexpr, BRANCH: tl.constexpr, GATED: tl.constexpr,
    INT8: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """A program: BLOCK_T tokens of one frame."""
    i_frame = tl.program_id(1).to(tl.int64)
    i_row, i_in_row = i_frame // F, i_frame % F
    o_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_d = tl.arange(0, BLOCK_D)
    m_t, m_d = o_t < T, o_d < D
    o_token = i_frame * T + o_t
    o_x = o_token[:, None] * D + o_d[None, :]
    m_x = m_t[:, None] & m_d[None, :]

    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    if BRANCH:
        b_branch = tl.load(p_branch + o_x, mask=m_x, other=0.0).to(tl.float32)
        if GATED:
            b_branch *= _of_frame(p_gate, i_row, i_in_row, gate_row, gate_frame, o_d, m_d)
        b_x += b_branch
        tl.store(p_sum + o_x, b_x.to(p_sum.dtype.element_ty), mask=m_x)
    b_factor = _of_frame(p_factor, i_row, i_in_row, factor_row, factor_frame, o_d, m_d)
    b_shift = _of_frame(p_shift, i_row, i_in_row, shift_row, shift_frame, o_d, m_d)

    b_centered = tl.where(m_x, b_x - (tl.sum(b_x, 1) / D)[:, None], 0.0)
    b_spread = tl.sqrt(tl.sum(b_centered * b_centered, 1) / D + eps)
    b_y = b_centered / b_spread[:, None] * b_factor + b_shift
    if INT8:
        b_levels, b_scales = quantize_tile(tl.where(m_x, b_y, 0.0))
        tl.store(p_out + o_x, b_levels, mask=m_x)
        tl.store(p_scales + o_token, b_scales, mask=m_t)
    else:
        tl.store(p_out + o_x, b_y.to(p_out.dtype.element_ty), mask=m_x)


@torch.library.custom_op(
    "longtake::layernorm_modulate",
    mutates_args=(),
    schema="(Tensor x, Tensor shift, Tensor factor, float eps) -> Tensor",
)
def layernorm_modulate(x: Tensor, shift: Tensor, factor: Tensor, eps: float) -> Tensor:
    """As `layernorm_modulate_reference`, with one rounding at the end instead of one per operator.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit, or a token has more channels than the tile.

    """
    out = torch.empty_like(x)
    _launch("layernorm_modulate", x, shift, factor, eps, out)
    return out


@torch.library.custom_op(
    "longtake::layernorm_modulate_int8",
    mutates_args=(),
    schema="(Tensor x, Tensor shift, Tensor factor, float eps) -> (Tensor, Tensor)",
)
def layernorm_modulate_int8(x: Tensor, shift: Tensor, factor: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `layernorm_modulate_int8_reference`. Raises like `layernorm_modulate`."""
    out, scales = _int8_like(x)
    _launch("layernorm_modulate_int8", x, shift, factor, eps, out, scales=scales)
    return out, scales


@torch.library.custom_op(
    "longtake::add_layernorm_modulate",
    mutates_args=(),
    schema="(Tensor x, Tensor branch, Tensor? gate, Tensor shift, Tensor factor, float eps) -> (Tensor, Tensor)",
)
def add_layernorm_modulate(
    x: Tensor, branch: Tensor, gate: Tensor | None, shift: Tensor, factor: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `add_layernorm_modulate_reference`, each result rounded once. Raises like `layernorm_modulate`."""
    added, out = torch.empty_like(x), torch.empty_like(x)
    _launch("add_layernorm_modulate", x, shift, factor, eps, out, branch=_Branch(branch, gate, added))
    return added, out


@torch.library.custom_op(
    "longtake::add_layernorm",
    mutates_args=(),
    schema="(Tensor x, Tensor branch, Tensor? gate, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
)
def add_layernorm(
    x: Tensor, branch: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `add_layernorm_reference`, each result rounded once. Raises like `layernorm_modulate`."""
    added, out = torch.empty_like(x), torch.empty_like(x)
    op = "add_layernorm"
    shift, factor = _of_every_frame(op, "bias", bias, x), _of_every_frame(op, "weight", weight, x)
    _launch(op, x, shift, factor, eps, out, branch=_Branch(branch, gate, added))
    return added, out


@torch.library.custom_op(
    "longtake::add_layernorm_modulate_int8",
    mutates_args=(),
    schema="(Tensor x, Tensor branch, Tensor? gate, Tensor shift, Tensor factor, float eps)"
    " -> (Tensor, Tensor, Tensor)",
)
def add_layernorm_modulate_int8(
    x: Tensor, branch: Tensor, gate: Tensor | None, shift: Tensor, factor: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `add_layernorm_modulate_int8_reference`. Raises like `layernorm_modulate`."""
    added, (out, scales) = torch.empty_like(x), _int8_like(x)
    op = "add_layernorm_modulate_int8"
    _launch(op, x, shift, factor, eps, out, branch=_Branch(branch, gate, added), scales=scales)
    return added, out, scales


@torch.library.custom_op(
    "longtake::add_layernorm_int8",
    mutates_args=(),
    schema="(Tensor x, Tensor branch, Tensor? gate, Tensor weight, Tensor bias, float eps)"
    " -> (Tensor, Tensor, Tensor)",
)
def add_layernorm_int8(
    x: Tensor, branch: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `add_layernorm_int8_reference`. Raises like `layernorm_modulate`."""
    added, (out, scales) = torch.empty_like(x), _int8_like(x)
    op = "add_layernorm_int8"
    shift, factor = _of_every_frame(op, "bias", bias, x), _of_every_frame(op, "weight", weight, x)
    _launch(op, x, shift, factor, eps, out, branch=_Branch(branch, gate, added), scales=scales)
    return added, out, scales


@layernorm_modulate.register_fake
def _(x: Tensor, shift: Tensor, factor: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@layernorm_modulate_int8.register_fake
def _(x: Tensor, shift: Tensor, factor: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _int8_like(x)


@add_layernorm_modulate.register_fake
@add_layernorm.register_fake
def _(
    x: Tensor, branch: Tensor, gate: Tensor | None, factor: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@add_layernorm_modulate_int8.register_fake
@add_layernorm_int8.register_fake
def _(
    x: Tensor, branch: Tensor, gate: Tensor | None, factor: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), *_int8_like(x)


def _int8_like(x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for rows as INT8 and their scales."""
    return torch.empty_like(x, dtype=torch.int8), torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)


class _Branch(NamedTuple):
    """What is added before the norm, through which gate, and where the sum goes."""

    y: Tensor
    gate: Tensor | None
    added: Tensor


def _launch(
    op: str, x: Tensor, shift: Tensor, factor: Tensor, eps: float, out: Tensor, *, branch: _Branch | None = None,
    scales: Tensor | None = None,
) -> None:  # fmt: skip
    y, gate, added = branch or _Branch(x, None, out)
    check_rows(op, x=x, branch=y)
    modulations = {"shift": shift, "factor": factor, "gate": factor if gate is None else gate}
    strides = [stride for name, m in modulations.items() for stride in modulation_strides(op, x, name, m)]
    batch, frames, tokens, dim = x.shape
    tile = tile_for(TILES, architecture(x.device), op)
    if dim > tile.n:
        raise ValueError(f"{op}: tokens of {dim} channels; its tile takes at most {tile.n}")
    _layernorm_modulate_kernel[(triton.cdiv(tokens, tile.m), batch * frames)](
        x, y, *modulations.values(), added, out, out if scales is None else scales, frames, tokens, *strides, eps,
        D=dim, BRANCH=branch is not None, GATED=gate is not None, INT8=scales is not None,
        BLOCK_T=tile.m, BLOCK_D=triton.next_power_of_2(dim), **tile.options,
    )  # fmt: skip


def _of_every_frame(op: str, name: str, channels: Tensor, x: Tensor) -> Tensor:
    """[D] as a modulation of `x`, without a copy."""
    if channels.shape != x.shape[-1:]:
        raise ValueError(f"{op}: {name} must be [{x.shape[-1]}]; got {list(channels.shape)}")
    return channels.expand(*x.shape[:-2], 1, -1)


FORMS = {
    "layernorm_modulate": {"BRANCH": False, "GATED": False, "INT8": False},
    "layernorm_modulate_int8": {"BRANCH": False, "GATED": False, "INT8": True},
    "add_layernorm_modulate": {"BRANCH": True, "GATED": False, "INT8": False},
    "add_layernorm_modulate_gated": {"BRANCH": True, "GATED": True, "INT8": False},
    "add_layernorm_modulate_int8": {"BRANCH": True, "GATED": False, "INT8": True},
    "add_layernorm_modulate_int8_gated": {"BRANCH": True, "GATED": True, "INT8": True},
}
"""Those that layers use, and the kernel's flags for each; a LayerNorm with weights is one of them."""


def aot_cases() -> Sequence[AotCase]:
    """Tokens of the real model in bf16, in every form."""
    return [_case(f"{name}_sm{sm}", sm, flags) for sm in ARCHITECTURES for name, flags in FORMS.items()]


def _case(name: str, sm: int, flags: dict[str, bool]) -> AotCase:
    half, tile = FLOATS[torch.bfloat16], TILES[sm]
    pointers = dict.fromkeys(("p_x", "p_branch", "p_shift", "p_factor", "p_gate", "p_sum"), half)
    pointers |= {"p_out": "*i8" if flags["INT8"] else half, "p_scales": "*fp32"}
    modulations = ("shift_row", "shift_frame", "factor_row", "factor_frame", "gate_row", "gate_frame")
    strides = dict.fromkeys(modulations, "i32")
    return AotCase(
        name=name,
        kernel=_layernorm_modulate_kernel,
        architecture=sm,
        tile=tile,
        arguments=pointers | {"F": "i32", "T": "i32"} | strides | {"eps": "fp32"},
        constants=flags | {"D": 1536, "BLOCK_T": tile.m, "BLOCK_D": tile.n},
        aligned=(*pointers, *strides),
    )
