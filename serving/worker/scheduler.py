"""Whose block is made next on one device."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import count

REMEMBERED = 4096
"""Sessions whose last turn is known."""


@dataclass(frozen=True)
class Candidate:
    """A session that waits for its next block: it may begin at `due` and is to be on screen at `deadline`.

    Sessions of one `shape` can share their passes.
    """

    key: str
    shape: Hashable
    deadline: float
    due: float


class Scheduler:
    """Earliest deadline first; among equals the one that was served longest ago. At most `batch` go together."""

    def __init__(self, batch: int = 1) -> None:
        self._batch = batch
        self._turns = count()
        self._served: dict[str, int] = {}

    def pick(self, candidates: Iterable[Candidate], now: float) -> list[Candidate]:
        """Whose blocks are made now, together; none if none is due."""
        due = [candidate for candidate in candidates if candidate.due <= now]
        if not due:
            return []
        ordered = sorted(due, key=lambda c: (c.deadline, self._served.get(c.key, -1)))
        picked = [candidate for candidate in ordered if candidate.shape == ordered[0].shape][: self._batch]
        for candidate in picked:
            self._served[candidate.key] = next(self._turns)
        while len(self._served) > REMEMBERED:
            del self._served[min(self._served, key=self._served.__getitem__)]
        return picked
