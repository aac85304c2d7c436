"""How much of a device's memory the KV cache may take, and what becomes of those for whom there is none left."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from engines.errors import DeviceOutOfMemory

logger = logging.getLogger(__name__)

RESERVE_BYTES = 768 << 20
"""Left alone on a GPU: memory of recorded graphs, libraries' workspaces, gaps between the allocator's blocks."""


@dataclass(frozen=True)
class MemoryBudget:
    """What a device has free beside the weights, and the most that running needs of it for a moment."""

    free: int
    working: int
    reserve: int = RESERVE_BYTES

    @property
    def lasting(self) -> int:
        """Bytes for what sessions keep."""
        return max(0, self.free - self.working - self.reserve)

    @classmethod
    def measured(cls, device: torch.device, *works: Callable[[], object], kept: int = 0) -> MemoryBudget:
        """On a CUDA device, by running `works` one by one, all of which may later run at the same moment.

        `kept` are bytes that sessions of their own hold meanwhile: they are no working memory.
        """
        working = max(0, sum(_peak_bytes(device, work) for work in works) - kept)
        torch.cuda.empty_cache()
        budget = cls(torch.cuda.mem_get_info(device)[0], working)
        logger.info("device memory", extra={"free": budget.free, "working": working, "reserve": budget.reserve})
        return budget


def _peak_bytes(device: torch.device, work: Callable[[], object]) -> int:
    """The most that `work` has allocated at once."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@contextmanager
def typed_out_of_memory(what: str) -> Iterator[None]:
    """Raise DeviceOutOfMemory, naming `what` was asked for, in place of PyTorch's own error.

    What the failed work held is let go of, and the allocator's spare memory given back, once.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        # The frames of a traceback keep their tensors for as long as anybody keeps the error.
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()
        logger.warning("out of device memory", extra={"what": what})
        raise DeviceOutOfMemory(f"the device has no memory left for {what}: {error}") from error
