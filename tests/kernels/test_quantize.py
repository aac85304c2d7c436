"""Rounding to INT8 is one rule, for whoever writes keys and whoever reads them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.quantize import quantize_rows, quantize_tile


@triton.jit
def _quantize_kernel(
    p_x: tl.tensor, p_rounded: tl.tensor, p_scales: tl.tensor, rows: tl.constexpr, channels: tl.constexpr
) -> None:
    o_x = tl.arange(0, rows)[:, None] * channels + tl.arange(0, channels)[None, :]
    b_rounded, b_scales = quantize_tile(tl.load(p_x + o_x))
    tl.store(p_rounded + o_x, b_rounded)
    tl.store(p_scales + tl.arange(0, rows), b_scales)


def test_halves_are_rounded_up_and_zeros_have_a_scale(device: torch.device) -> None:
    x = torch.tensor([[127.0, 0.5, -0.5, -2.5], [0.0, 0.0, 0.0, 0.0]], device=device)
    rounded, scales = torch.empty_like(x, dtype=torch.int8), torch.empty(2, device=device)
    _quantize_kernel[(1,)](x, rounded, scales, rows=2, channels=4)
    assert rounded.tolist() == quantize_rows(x)[0].tolist() == [[127, 1, 0, -2], [0, 0, 0, 0]]
    assert torch.equal(scales, quantize_rows(x)[1])
    assert scales[0] == 1
