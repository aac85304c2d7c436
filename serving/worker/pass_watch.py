"""Notices a pass that does not come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

TIMES_USUAL = 20.0
SHORTEST_S = 10.0
FIRST_S = 300.0
"""Before any pass has come back: with compilation, or with the first allocations of a device."""


class PassWatch:
    """Compares how long a pass has been running with how long passes usually take. Times are of one clock."""

    def __init__(self) -> None:
        self._usual_s: float | None = None
        self._began: float | None = None

    @contextmanager
    def running(self, clock: Callable[[], float]) -> Iterator[None]:
        """A pass runs; one that raises says nothing about the usual time."""
        self._began = clock()
        try:
            yield
            self._learn(clock() - self._began)
        finally:
            self._began = None

    def overdue(self, now: float) -> float | None:
        """For how long a pass has been running that should have come back; None where none has."""
        if self._began is None:
            return None
        most = FIRST_S if self._usual_s is None else max(SHORTEST_S, TIMES_USUAL * self._usual_s)
        ran = now - self._began
        return ran if ran > most else None

    def _learn(self, seconds: float) -> None:
        self._usual_s = seconds if self._usual_s is None else 0.9 * self._usual_s + 0.1 * seconds
