"""What the tests of kernels share: their device, and memory that shows what a kernel left unwritten."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.tiles import interpreted

NONSENSE = 77
"""What integers that nobody wrote hold."""


@pytest.fixture
def device() -> torch.device:
    """The CPU where Triton interprets, and else the GPU."""
    return torch.device("cpu" if interpreted() else "cuda")


@pytest.fixture(autouse=True)
def _unwritten_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what torch.empty returns with NaN, so that an output nobody wrote fails its test."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _filled(vars(torch)[name]))


def _filled(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(allocate)
    def filled(*args: Any, **kwargs: Any) -> Tensor:
        x = allocate(*args, **kwargs)
        return x.fill_(torch.nan) if x.is_floating_point() else x.fill_(NONSENSE)

    return filled
