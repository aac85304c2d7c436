"""cuDNN's search for the fastest way to compute a convolution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def searching_convolutions(device: torch.device) -> Iterator[None]:
    """Time all ways to compute each convolution that is new to this process; elsewhere than on CUDA, nothing.

    For what is warmed up: what has been found stays when the block ends, and shapes that come later do not wait
    for a search. One thread at a time.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
