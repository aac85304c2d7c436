"""RoPE angles along height and width, made once for each picture size."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from engines.device.host_copy import to_device
from engines.runner.rows import TokenGrid
from kernels.attention.rope import spatial_freqs

KEPT = 16
"""Picture sizes whose angles are kept, 0.5 MB for 480x832: clients choose theirs."""


class SpatialFreqs:
    """Angles [rows * columns, pairs] on `device` for heads of `head_dim`, of the sizes used last."""

    def __init__(self, head_dim: int, device: torch.device) -> None:
        self._head_dim = head_dim
        self._device = device
        self._made: OrderedDict[TokenGrid, Tensor] = OrderedDict()

    def of(self, grid: TokenGrid) -> Tensor:
        """For pictures of so many tokens."""
        if grid not in self._made:
            self._made[grid] = to_device(spatial_freqs(grid.rows, grid.columns, self._head_dim), self._device)
            if len(self._made) > KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(grid)
        return self._made[grid]
