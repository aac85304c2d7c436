"""Rows as INT8, each with a scale of its own: x is about its INT8 times the scale; halves are rounded up."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INT8_MAX = tl.constexpr(127.0)
MIN_AMAX = tl.constexpr(1e-30)
"""Stands for the largest of a row of zeros, which is divided by."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """INT8 of x [..., D] by its largest channel, halves rounded up, and fp32 scales [...]."""
    scales = x.float().abs().amax(dim=-1).clamp(min=MIN_AMAX.value) / INT8_MAX.value
    return torch.floor(x.float() / scales.unsqueeze(-1) + 0.5).to(torch.int8), scales


@triton.jit
def quantize_tile(b_x: tl.tensor) -> tl.tensor:
    """INT8 of rows [M, D], and their scales [M]; see `quantize_rows`."""
    b_scale = tl.maximum(tl.max(tl.abs(b_x.to(tl.float32)), 1), MIN_AMAX) / INT8_MAX
    return tl.floor(b_x.to(tl.float32) / b_scale[:, None] + 0.5).to(tl.int8), b_scale


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
