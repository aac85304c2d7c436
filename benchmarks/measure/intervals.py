"""How sure a measured number is: 95 % intervals of shares and of ratios."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from typing_extensions import override

Z95 = 1.959964
"""Standard deviations round the mean of a normal distribution that hold 95 % of it."""


@dataclass(frozen=True)
class Share:
    """How often something held, of so many independent trials. `right` need not be whole.

    A trial of several readings that go right or wrong together counts for the part of them that was right.
    Raises ValueError unless 0 <= right <= trials.
    """

    right: float
    trials: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.trials:
            raise ValueError(f"{self.right} of {self.trials} trials; it must be between none and all")

    @classmethod
    def of(cls, outcomes: Iterable[bool | float]) -> Self:
        """Of one outcome per trial."""
        values = [float(outcome) for outcome in outcomes]
        return cls(sum(values), len(values))

    def __add__(self, other: Share) -> Share:
        return Share(self.right + other.right, self.trials + other.trials)

    @property
    def value(self) -> float:
        """The share; nan of no trials."""
        return self.right / self.trials if self.trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval (1927), which stays within 0..1; all of it where there were no trials."""
        if self.trials == 0:
            return 0.0, 1.0
        n, p, z2 = self.trials, self.value, Z95**2
        center = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
        return max(0.0, center - half), min(1.0, center + half)

    def as_json(self) -> dict[str, float | int | None]:
        """Share, interval and counts; the share is None of no trials."""
        low, high = self.interval
        value = round(self.value, 4) if self.trials else None
        return {"share": value, "low": round(low, 4), "high": round(high, 4),
                "right": round(self.right, 3), "trials": self.trials}  # fmt: skip

    @override
    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:6.1%} ({low:.1%} to {high:.1%}, n {self.trials})"


@dataclass(frozen=True)
class Ratio:
    """The typical ratio of two positive quantities measured in pairs: the geometric mean, and its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, measured: Sequence[float], reference: Sequence[float]) -> Self:
        """Of one pair per trial. One pair alone has no interval: it is nan. Raises ValueError for no pair."""
        if not measured:
            raise ValueError("no pair was measured; a ratio needs one")
        logs = np.log(np.asarray(measured)) - np.log(np.asarray(reference))
        mean = float(logs.mean())
        half = Z95 * float(logs.std(ddof=1)) / math.sqrt(len(logs)) if len(logs) > 1 else math.nan
        return cls(math.exp(mean), math.exp(mean - half), math.exp(mean + half))

    def as_json(self) -> dict[str, float | None]:
        """Ratio and interval; None for bounds that there are not."""
        bounds = {"low": self.low, "high": self.high}
        return {"ratio": round(self.value, 4)} | {
            name: None if math.isnan(bound) else round(bound, 4) for name, bound in bounds.items()
        }

    @override
    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"
