"""Copies of a device's tensors on the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class HostTensor(NamedTuple):
    """A tensor as it travels: its bytes, shape and dtype. Numpy has no bfloat16."""

    data: bytes
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> HostTensor:
        """A copy of `tensor` on the host."""
        here = tensor.detach().to("cpu").contiguous()
        return cls(here.flatten().view(torch.uint8).numpy().tobytes(), tuple(here.shape), here.dtype)

    def tensor(self) -> Tensor:
        """On the CPU, in memory of its own."""
        flat = torch.from_numpy(np.frombuffer(bytearray(self.data), np.uint8))
        return flat.view(self.dtype).reshape(self.shape)
