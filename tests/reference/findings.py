"""What comparing with a recording found."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from torch import Tensor

CODEC_BOUND = 2e-5
"""fp32: pixels, encoded latents and text embeddings."""


class Finding(NamedTuple):
    """The largest difference over `compared` tensors, and its bound; None where there is none to keep."""

    what: str
    difference: float
    bound: float | None
    compared: int

    @property
    def kept(self) -> bool:
        """Whether something was compared and is close enough. A NaN is not."""
        return self.compared > 0 and (self.bound is None or self.difference <= self.bound)

    def __str__(self) -> str:
        bound = "" if self.bound is None else f"  bound {self.bound:.0e}  {'ok' if self.kept else 'MISS'}"
        return f"  {self.what:<24} {self.difference:9.2e}  of {self.compared:4d}{bound}"


class Differences:
    """Collects the largest difference under each name."""

    def __init__(self) -> None:
        self._largest: defaultdict[str, float] = defaultdict(float)
        self._compared: defaultdict[str, int] = defaultdict(int)

    def note(self, what: str, ours: Tensor, recorded: Tensor) -> None:
        """Compare two tensors; another shape, and NaN, count as infinitely far."""
        far = float("inf")
        if ours.shape == recorded.shape:
            far = (ours.float() - recorded.float()).abs().nan_to_num(nan=far).max().item()
        self._largest[what] = max(self._largest[what], far)
        self._compared[what] += 1

    def findings(self, bound: float | None) -> list[Finding]:
        """One for each name."""
        return [Finding(what, far, bound, self._compared[what]) for what, far in self._largest.items()]
