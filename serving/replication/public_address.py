"""Which cluster the address leads to that clients know, by what answers there.

In an upgrade it is led from the old cluster to the next one, and for some time both may answer. A cluster that it
has not led to yet is the next one itself, and is not replaced by the one that answers before it.
"""

from __future__ import annotations

SAME_ANSWERS = 3
"""So many in a row say where the address leads."""


class PublicAddress:
    """The address as one process of `cluster` sees it."""

    def __init__(self, cluster: str) -> None:
        self._own = cluster
        self._heard, self._times = "", 0
        self._has_led_here = False
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

    def answered(self, cluster: str) -> None:
        """That is the cluster which has answered there."""
        self._times = self._times + 1 if cluster == self._heard else 1
        self._heard = cluster
        if not self.is_sure:
            return
        if cluster == self._own:
            self._has_led_here, self.successor = True, None
        elif self._has_led_here:
            self.successor = cluster
