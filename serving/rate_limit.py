"""How often something may be done: a caller may ask, a session may be attached to."""

from __future__ import annotations

import time
from collections.abc import Callable

from serving.errors import TooManyRequests

REMEMBERED = 10_000
"""Keys; those that have been quiet for long are forgotten then."""


class RateLimit:
    """Lets something be done `per_second` times a second for each key, and `burst` times at once after some quiet.

    `clock` is monotonic. What is refused does not count: who comes back when told to is let in.
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._paid_until: dict[str, float] = {}

    def take(self, key: str, doing: str, weight: int = 1) -> None:
        """Count one more, as `weight`.

        Raises TooManyRequests, which says who is `doing` so, and when there is room again.
        """
        now = self._clock()
        paid_until = max(self._paid_until.get(key, now), now) + weight / self._per_second
        # A hair's breadth is no reason to send somebody away who comes when told to.
        ahead_s = max(self._burst, weight) / self._per_second
        if (wait_s := paid_until - now - ahead_s) > 1e-6:
            raise TooManyRequests(
                f"{doing} more than {self._per_second:g} times a second; come back in {wait_s:.3f} s", wait_s
            )
        self._paid_until[key] = paid_until
        if len(self._paid_until) > REMEMBERED:
            self._paid_until = {key: until for key, until in self._paid_until.items() if until > now}
