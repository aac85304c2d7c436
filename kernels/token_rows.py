"""What kernels of token rows share: rows lie in frames, and a frame's modulation holds for all of its tokens.

rows        [B, F, T, D]   contiguous: the T tokens of F frames in each of the B rows of a pass
modulation  [B, F, 1, D]   any strides but the last, which is 1: a view into a table, or expanded over frames
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLOATS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
"""The dtypes that these kernels take, and how Triton writes a pointer to them."""


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of [..., C], in fp32, weighted by [C] in the dtype of `x`. It needs no Triton."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


class ModulationStrides(NamedTuple):
    """Elements from the modulation of a pass's row to the next one's, and from a frame's to the next one's."""

    row: int
    frame: int


def check_rows(op: str, **rows: Tensor) -> None:
    """Raise ValueError unless all are contiguous [B, F, T, D] of one shape, dtype and device."""
    first = next(iter(rows.values()))
    for name, x in rows.items():
        if x.dtype not in FLOATS:
            raise ValueError(f"{op}: {name} is {x.dtype}; it takes {[str(dtype) for dtype in FLOATS]}")
        if x.dim() != 4 or 0 in x.shape or not x.is_contiguous():
            raise ValueError(
                f"{op}: {name} must be contiguous [B, F, T, D], none of them 0; got {list(x.shape)} with strides "
                f"{list(x.stride())}"
            )
        if (x.shape, x.dtype, x.device) != (first.shape, first.dtype, first.device):
            raise ValueError(
                f"{op}: {name} is {list(x.shape)} {x.dtype} on {x.device}, "
                f"beside {list(first.shape)} {first.dtype} on {first.device}"
            )


def modulation_strides(op: str, rows: Tensor, name: str, modulation: Tensor) -> ModulationStrides:
    """How to find each frame's modulation. Raises ValueError unless it is [B, F, 1, D] and fits `rows`."""
    batch, frames, _, dim = rows.shape
    if modulation.shape != (batch, frames, 1, dim) or modulation.stride(3) != 1:
        raise ValueError(
            f"{op}: {name} must be [{batch}, {frames}, 1, {dim}] with neighboring channels side by side; got "
            f"{list(modulation.shape)} with strides {list(modulation.stride())}"
        )
    if (modulation.dtype, modulation.device) != (rows.dtype, rows.device):
        raise ValueError(
            f"{op}: {name} is {modulation.dtype} on {modulation.device}, the rows {rows.dtype} on {rows.device}"
        )
    return ModulationStrides(modulation.stride(0), modulation.stride(1))
