"""How often the feed of a standby copy is opened again, and how often that is said."""

from __future__ import annotations


class FeedRetries:
    """Waits twice as long each time until the copy has grown again, and tells new errors from the last one."""

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._next_s = first_s
        self._said = ""

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
