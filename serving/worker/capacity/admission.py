"""Whether a device has time for one session more, beside those that are there; and what it would have time for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

MOST_BUSY = 0.9
"""Of a device's time, what sessions may need: prompts that switch, and other programs, need the rest."""


LOOKED_AT = 8
"""Blocks of each session for which that is looked at, one after the other."""


@dataclass(frozen=True)
class Demand:
    """What a session needs: seconds of two stages for each block, and a block every `period_s`.

    A block may be begun `ahead_s` before it is to be on screen. An unpaced session has no period: it takes what is
    left, but what it has begun the others wait for.
    """

    denoise_s: float
    deliver_s: float
    period_s: float = math.inf
    ahead_s: float = math.inf

    @property
    def longest_s(self) -> float:
        """Of its calls that cannot be interrupted."""
        return max(self.denoise_s, self.deliver_s)

    @property
    def paced(self) -> bool:
        """Whether its blocks are to be there in time."""
        return self.period_s < math.inf


Stage = Callable[[Demand], float]


def shortage(newcomer: Demand, others: Iterable[Demand]) -> str | None:
    """Why a device has no time for `newcomer`, in words; None where it has.

    Whoever is alone is let in: nobody else is made late. Beside others, both stages must be done with what all of
    them need within MOST_BUSY of the time, and every paced session must have its block in time even if all want
    theirs at once, and the longest call of another one has just begun.
    """
    present = tuple(others)
    if not present:
        return None
    demands = (*present, newcomer)
    for stage, seconds in (("generate", _denoise), ("decode", _deliver)):
        busy = sum(seconds(demand) / demand.period_s for demand in demands)
        if newcomer.paced and busy > MOST_BUSY:
            taken = busy - seconds(newcomer) / newcomer.period_s
            return (
                f"to {stage} a block takes {seconds(newcomer):.2f} s of the {newcomer.period_s:.2f} s that it "
                f"lasts, and those that are here need {taken:.0%} of the time"
            )
    return _late(newcomer, demands)


def _late(newcomer: Demand, demands: Sequence[Demand]) -> str | None:
    """Who would wait too long, and for what."""
    counts = Counter(demands)
    for demand in counts:
        if not demand.paced:
            continue
        for block in range(LOOKED_AT):
            span = demand.ahead_s + block * demand.period_s
            if (waits := _takes(span, counts)) > span:
                longest = max(other.longest_s for other in counts)
                whose = "this one" if demand == newcomer else "another one"
                return (
                    f"a block of {whose} would wait {waits - span:.2f} s longer than the {demand.ahead_s:.2f} s "
                    f"that it may; the longest call that cannot be interrupted takes {longest:.2f} s"
                )
    return None


def _takes(span_s: float, counts: Mapping[Demand, int]) -> float:
    """How long all that is to be on screen within a span takes, behind a call that has begun already.

    While one block is decoded the next one is denoised, so that each takes its longer stage, and one of them both.
    """
    sooner = {other: count for other, count in counts.items() if other.ahead_s <= span_s}
    turns = sum(count * _blocks_within(span_s, other) * other.longest_s for other, count in sooner.items())
    begun = max((other.longest_s for other in counts if other.ahead_s > span_s), default=0.0)
    return turns + begun + max(min(other.denoise_s, other.deliver_s) for other in counts)


def _blocks_within(span_s: float, other: Demand) -> int:
    """Blocks of `other` that are to be on screen within a span at whose beginning one becomes due."""
    return 1 + math.floor((span_s - other.ahead_s) / other.period_s)


def _denoise(demand: Demand) -> float:
    return demand.denoise_s


def _deliver(demand: Demand) -> float:
    return demand.deliver_s
