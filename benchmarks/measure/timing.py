"""Timing calls: a GPU's own clock on CUDA, a monotonic one elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

WARM_UP = 2
"""Calls that are made and not counted."""

T = TypeVar("T")


class Timed(NamedTuple, Generic[T]):
    """What a call returned, and how long it took."""

    value: T
    ms: float


def timed(call: Callable[[], T], device: torch.device) -> Timed[T]:
    """Make one call. On CUDA the GPU is idle before it, so gaps between launches count."""
    if device.type == "cuda":
        return _timed_cuda(call, device)
    start = time.perf_counter()
    value = call()
    return Timed(value, (time.perf_counter() - start) * 1e3)


def _timed_cuda(call: Callable[[], T], device: torch.device) -> Timed[T]:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    stream = torch.cuda.current_stream(device)
    start.record(stream)
    value = call()
    end.record(stream)
    end.synchronize()
    return Timed(value, start.elapsed_time(end))


@dataclass(frozen=True)
class Samples:
    """Times of equal calls, in the order in which they were made."""

    ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Half of the calls took longer."""
        return self.quantile_ms(0.5)

    def quantile_ms(self, share: float) -> float:
        """What `share` of the calls stayed below."""
        return float(np.quantile(self.ms, share))


def sample(run: Callable[[int], T], runs: int, device: torch.device) -> tuple[Samples, T]:
    """Time `runs` calls after warming up; with the samples comes what the last one returned.

    `run` is given the number of its call, so that it can take another input each time.
    """
    for i in range(WARM_UP):
        run(i)
    calls = [timed(partial(run, i), device) for i in range(runs)]
    return Samples(tuple(call.ms for call in calls)), calls[-1].value
