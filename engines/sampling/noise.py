"""The noise of a stream: a pure function of seed, block, draw and shape, so that any block can be made again."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

DRAWS_PER_BLOCK = 1 << 10
"""Room for draws in a block's key: draw 0 starts the block, draw i follows step i."""


class Noise(Protocol):
    """Where a stream's Gaussian noise comes from."""

    def draw(self, block: int, draw: int, shape: tuple[int, ...]) -> Tensor:
        """Noise `draw` of `block`: fp32 on the CPU, of `shape`. The same arguments give the same tensor."""


class SeededNoise:
    """Standard normal noise from a counter-based generator (Philox 4x64, Salmon et al. 2011)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def draw(self, block: int, draw: int, shape: tuple[int, ...]) -> Tensor:
        """Noise `draw` of `block`; nothing drawn before or beside it matters."""
        key = np.array([self._seed, block * DRAWS_PER_BLOCK + draw], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
