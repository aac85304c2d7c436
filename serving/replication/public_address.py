"""Which cluster the address leads to that clients know, by what answers there.

In an upgrade it is led from the old cluster to the next one, and for some time both may answer. A cluster that it
has not led to yet is the next one itself, and is not replaced by the one that answers before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SAME_ANSWERS = 3
"""So many in a row say where the address leads."""

ARRIVE_S = 60.0
"""How long after another cluster's last answer its sessions may still be on their way here."""


class PublicAddress:
    """The address as one process sees it; without answers it leads nowhere. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard, self._times = "", 0
        self._has_led_here = False
        self._other_at: float | None = None
        self.successor: str | None = None
        """The cluster that it leads to now, where it has led here before."""

    @property
    def is_sure(self) -> bool:
        """Whether enough of the last answers are the same."""
        return self._times >= SAME_ANSWERS

    @property
    def leads_here(self) -> bool:
        """Whether it leads to the process's own cluster, as far as is known."""
        return self._has_led_here and self.successor is None

    @property
    def sessions_may_arrive(self) -> bool:
        """Whether clients may come whose sessions another cluster still has that answered there."""
        return self._other_at is not None and self._clock() - self._other_at < ARRIVE_S

    def answered(self, cluster: str, own: str) -> None:
        """The cluster which has answered there, and the process's own."""
        self._times = self._times + 1 if cluster == self._heard else 1
        self._heard = cluster
        if cluster != own:
            self._other_at = self._clock()
        if not self.is_sure:
            return
        if cluster == own:
            self._has_led_here, self.successor = True, None
        elif self._has_led_here:
            self.successor = cluster
