"""Notices a pass that does not come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

TIMES_USUAL = 20.0
SHORTEST_S = 10.0
FIRST_S = 300.0
"""Before any pass has come back: with compilation, or with the first allocations of a device."""


class PassWatch:
    """Compares how long a pass has been running with how long it should take. Times are of one clock."""

    def __init__(self) -> None:
        self._any = False
        self._began: float | None = None
        self._most = FIRST_S

    @property
    def is_running(self) -> bool:
        """Whether a pass has not come back yet."""
        return self._began is not None

    @contextmanager
    def running(self, clock: Callable[[], float], usual_s: float) -> Iterator[None]:
        """A pass runs that should take `usual_s`; before one has come back that is not known for sure."""
        most = max(SHORTEST_S, TIMES_USUAL * usual_s)
        self._began, self._most = clock(), most if self._any else max(FIRST_S, most)
        try:
            yield
            self._any = True
        finally:
            self._began = None

    def overdue(self, now: float) -> float | None:
        """For how long a pass has been running that should have come back; None where none has."""
        if self._began is None:
            return None
        ran = now - self._began
        return ran if ran > self._most else None
