"""When a manager last heard of its replicas, and the calls that renew leases on them."""

from __future__ import annotations

from collections.abc import Iterable

from serving.replication.leases import CopyLease, RenewRequest


class Contacts:
    """The last reading that a manager has received of each replica's clock, and when.

    Leases of all its sessions on a replica are renewed with the same reading, so silence is measured from here
    too: an answer that said nothing of a session has still prolonged what the next call grants it.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}

    def heard(self, replica: str, reading: float, now: float) -> bool:
        """An answer came. False if it was overtaken by a later one, and then its reports are old news."""
        last = self._last.get(replica)
        if last is not None and reading <= last[0]:
            return False
        self._last[replica] = (reading, now)
        return True

    def heard_at(self, replica: str) -> float | None:
        """When the last reading came, on the manager's clock."""
        last = self._last.get(replica)
        return None if last is None else last[1]

    def forget(self, replica: str) -> None:
        """The replica is gone for good."""
        self._last.pop(replica, None)

    def request(
        self,
        manager: str,
        replica: str,
        copies: Iterable[CopyLease],
        streams: Iterable[str] = (),
        *,
        leaving: bool = False,
    ) -> RenewRequest:
        """What to send to the replica now."""
        last = self._last.get(replica)
        reading = None if last is None else last[0]
        return RenewRequest(manager, replica, reading, tuple(copies), tuple(streams), leaving)
