"""Waits between the tries to have a lost stream back."""

from __future__ import annotations

import math

FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 0.5

STOOD_S = 4.0
"""A stream that stood for so long before it was lost had something, even if it was no more than silence."""


class Backoff:
    """Tries again after ever longer waits, until `seconds` have brought nothing."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._tried_at = -math.inf
        self.satisfied()

    def satisfied(self) -> None:
        """Something has come."""
        self._lost_at = math.inf
        self._wait_s = FIRST_WAIT_S

    def wait_s(self, now: float) -> float | None:
        """Something was lost at `now`: how long to wait before the next try, None to give up."""
        if now - self._tried_at > STOOD_S:
            self.satisfied()
        self._lost_at = min(self._lost_at, now)
        if now - self._lost_at >= self.seconds:
            return None
        wait_s, self._wait_s = self._wait_s, min(2 * self._wait_s, LONGEST_WAIT_S)
        self._tried_at = now + wait_s
        return wait_s
