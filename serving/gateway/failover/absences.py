"""Since when the owners of sessions do not answer, over all who ask: a client that asks anew waits no longer."""

from __future__ import annotations

from cachetools import LRUCache

from serving.gateway.ownership.session_directory import REMEMBERED
from serving.replication.register import Owner

FORGOTTEN_S = 15.0
"""After so long without a question nothing is known: clients ask again within a few seconds."""


class Absences:
    """When each owner was first and last asked in vain. Another owner of a session is another absence."""

    def __init__(self) -> None:
        self._asked: LRUCache[Owner, tuple[float, float]] = LRUCache(REMEMBERED)

    def note(self, owner: Owner, now: float) -> float:
        """It did not answer. Returns when that began."""
        first, last = self._asked.get(owner, (now, now))
        begun = first if now - last < FORGOTTEN_S else now
        self._asked[owner] = begun, now
        return begun

    def end(self, owner: Owner) -> None:
        """It answered."""
        self._asked.pop(owner, None)
