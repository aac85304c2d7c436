"""How often the feed of a standby copy is opened again, and how often that is said."""

from __future__ import annotations

import math


class FeedRetries:
    """Waits twice as long each time until the copy has grown again, and tells new errors from the last one."""

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._next_s = first_s
        self._said = ""
        self._missed_at = -math.inf

    def grown(self) -> None:
        """A delta has come and is in the copy."""
        self._next_s, self._said = self._first_s, ""

    def is_news(self, error: Exception) -> bool:
        """Whether the feed did not fail like that before."""
        before, self._said = self._said, repr(error)
        return self._said != before

    def wait_s(self, most_s: float) -> float:
        """How long to wait now: `most_s` at most."""
        waits_s = min(self._next_s, most_s)
        self._next_s *= 2
        return waits_s

    def missed_wait_s(self, now: float, every_s: float) -> float:
        """How long to wait since a delta is missing: not at all, unless one was `every_s` ago or less."""
        waits_s = max(0.0, self._missed_at + every_s - now)
        self._missed_at = now + waits_s
        return waits_s
