"""What is done to a server's replicas, in an order that a seed decides."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

DEPLOYMENTS = ("Denoiser", "VideoDecoder", "TextEncoder", "SessionManager")
STOPS_S = (1.0, 3.0, 10.0)
BOTH_EVERY = 10
"""One fault of so many kills a session's denoiser and its manager at once: the session may be lost."""


@dataclass(frozen=True)
class Fault:
    """A signal to one replica of each of `deployments`: SIGKILL, or SIGSTOP and after `stop_s` SIGCONT.

    With two deployments they are the two that have the state of one session.
    """

    deployments: tuple[str, ...]
    stop_s: float | None = None

    @property
    def kind(self) -> str:
        """In words; faults of a kind are reported together."""
        done = "killed" if self.stop_s is None else f"stopped for {self.stop_s:g} s"
        return f"{' and '.join(self.deployments)} {done}"

    @property
    def may_lose_sessions(self) -> bool:
        """Whether both copies of a session's state are hit at once."""
        return len(self.deployments) > 1


BOTH = Fault(("Denoiser", "SessionManager"))
SINGLE = [Fault((name,), stop_s) for stop_s in (None, *STOPS_S) for name in DEPLOYMENTS]


def plan(count: int, seed: int) -> list[Fault]:
    """`count` faults: each kind about as often as any other, in an order of their own."""
    rng = random.Random(seed)
    rounds = itertools.chain.from_iterable(rng.sample(SINGLE, len(SINGLE)) for _ in range(count))
    # The last ones of a round, so that short plans have one as well.
    return [BOTH if number % BOTH_EVERY == BOTH_EVERY - 1 else next(rounds) for number in range(count)]
