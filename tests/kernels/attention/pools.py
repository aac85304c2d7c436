"""A KV pool for tests of kernels: several runs between neighbours full of NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.attention.kv_view import KVPlanes, KVView
from kernels.quantize import quantize_heads

HEADS, DIM, LAYERS, LAYER = 2, 16, 2, 1


class Run(NamedTuple):
    """A row's tokens of the pool: where they begin, and which of them are attended."""

    start: int
    used: int
    first: int = 0

    @property
    def bounds(self) -> tuple[int, int]:
        return self.start + self.first, self.start + self.used


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def pool(
    runs: Sequence[Run],
    *,
    tokens: int = 256,
    heads: int = HEADS,
    dim: int = DIM,
    dtype: torch.dtype = torch.float32,
) -> KVPlanes:
    """Planes that are NaN where no run attends: nobody may read there."""
    keys, values = torch.full((2, LAYERS, tokens, heads, dim), torch.nan, dtype=dtype)
    for number, run in enumerate(runs):
        begin, end = run.bounds
        keys[:, begin:end], values[:, begin:end] = random(2, LAYERS, end - begin, heads, dim, seed=number)
    return KVPlanes(keys, values)


def view(
    planes: KVPlanes, runs: Sequence[Run], device: torch.device, last_log: Sequence[float] | None = None
) -> KVView:
    """What the rows attend, on `device`."""
    tensors = (planes.keys, planes.values, planes.key_scales, planes.value_scales)
    return KVView(
        KVPlanes(*(x if x is None else x.to(device) for x in tensors)),  # type: ignore[arg-type]
        torch.tensor([run.bounds for run in runs], dtype=torch.int32, device=device).T.contiguous(),
        max_tokens=max(end - begin for begin, end in (run.bounds for run in runs)),
        last_log=None if last_log is None else torch.tensor(last_log, device=device),
    )


def int8(planes: KVPlanes, *, keys: bool = True, values: bool = False) -> KVPlanes:
    """The same with INT8 keys, or values; where they are NaN, which INT8 has not, their scales are."""
    kept_keys, key_scales = _int8(planes.keys) if keys else (planes.keys, None)
    kept_values, value_scales = _int8(planes.values) if values else (planes.values, None)
    return KVPlanes(kept_keys, kept_values, key_scales, value_scales)


def _int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    rounded, scales = quantize_heads(rows.float().nan_to_num(nan=1e4))
    return rounded, scales.masked_fill(rows.isnan().any(-1).mT, torch.nan)
