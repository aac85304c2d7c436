"""How often a caller may ask."""

from __future__ import annotations

import time
from collections.abc import Callable

from serving.errors import TooManyRequests


class RateLimit:
    """Lets each caller ask `per_second` times a second, and `burst` times at once after a while of quiet.

    `clock` is monotonic. What is refused does not count: who comes back when told to is let in.
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._ahead_s = max(burst, 1) / per_second
        self._clock = clock
        self._paid_until: dict[str, float] = {}

    def take(self, caller: str) -> None:
        """Count one request. Raises TooManyRequests, which says when there is room for the next one."""
        now = self._clock()
        paid_until = max(self._paid_until.get(caller, now), now) + 1 / self._per_second
        # A hair's breadth is no reason to send somebody away who comes when told to.
        if (wait_s := paid_until - now - self._ahead_s) > 1e-6:
            who = f"{caller} asks" if caller else "all clients together ask"
            raise TooManyRequests(
                f"{who} more than {self._per_second:g} times a second; come back in {wait_s:.3f} s", wait_s
            )
        self._paid_until[caller] = paid_until
