"""How far a kernel may be from its reference: one table, in units of the last place of the output's dtype.

A kernel and its reference sum in different orders in fp32, and Triton's interpreter casts to bf16 by truncation:
one unit. The reference of a 16-bit kernel is taken in fp32 from the same inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

ULPS = {
    # Two sums of up to 1536 terms, a square root and a division.
    "layernorm_modulate": 16,
    # One sum of up to 1536 terms, a square root and a division.
    "rms_norm": 16,
    # The same, then a turn.
    "qk_norm_rope": 16,
    # A product and a sum; a GPU rounds once for both.
    "add": 2,
    # A sum of squares of up to 384 terms, a square root, two divisions and an exponential.
    "causal_pad": 16,
    # Two sums.
    "conv_epilogue": 2,
    # An exponential, a quotient, two products and sums.
    "merge": 8,
    # A sum of 15 terms and a division.
    "frame_means": 4,
    # fp64, then a product and a sum: the same operations in the same order.
    "flow_step": 0,
    # Sums of up to 300 products, which grow with the square root of their number, and an exponential.
    "linear": 32,
    # Exact sums, then two products and a sum, which a GPU rounds once less; an exponential, a quotient, a product.
    "linear_int8": 8,
    # The same for scores, an exponential of those, and a sum weighted by it.
    "window_attention": 32,
}
"""Largest error of each op in fp32, in last places of the larger of 1 and the value."""

ULPS_16_BIT = 1
"""The same for every op in fp16 and bf16, where only the last rounding counts."""


def assert_within(op: str, actual: Tensor, reference: Tensor) -> None:
    """Raise AssertionError where `actual` is further from `reference` than the table allows."""
    bound = (ULPS[op] if actual.dtype == torch.float32 else min(ULPS_16_BIT, ULPS[op])) * torch.finfo(
        actual.dtype
    ).eps
    torch.testing.assert_close(actual.double(), reference.double(), atol=bound, rtol=bound)
