"""A device that has no memory left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

SMALLEST_BYTES = 512
"""The least that PyTorch's allocator hands out on CUDA."""


@contextmanager
def no_memory(device: torch.device) -> Iterator[None]:
    """While it lasts nothing can be allocated: all is taken. On a CPU every call says so, and none is made."""
    if device.type != "cuda":
        with _Refusing():
            yield
        return
    taken = _take_all(device)
    try:
        yield
    finally:
        taken.clear()
        torch.cuda.empty_cache()


class _Refusing(TorchFunctionMode):
    @override
    def __torch_function__(self, *_: Any) -> Any:
        raise torch.OutOfMemoryError("the device has no memory, as far as this trial goes")


def _take_all(device: torch.device) -> list[Tensor]:
    """Tensors that leave no gap in the device's memory, nor in what the allocator holds of it."""
    torch.cuda.empty_cache()
    taken, size = list[Tensor](), max(torch.cuda.mem_get_info(device)[0], SMALLEST_BYTES)
    while True:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device=device))
        except torch.OutOfMemoryError:
            if size == SMALLEST_BYTES:
                return taken
            size = max(size // 2, SMALLEST_BYTES)
