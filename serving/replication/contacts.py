"""What a manager last heard of its replicas, and the calls that renew leases on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from serving.replication.leases import CopyLease, RenewRequest


class Contacts:
    """The last reading that a manager has received of each replica's clock, and when.

    Leases of all its sessions on a replica are renewed with the same reading, so silence is measured from here
    too: an answer that said nothing of a session has still prolonged what the next call grants it.

    Each answer says as well how many sessions the replica could still open: nobody need ask before one is opened.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}
        self._rooms: dict[str, int] = {}

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
        self._rooms.pop(replica, None)

    def heard_room(self, replica: str, sessions: int) -> None:
        """So many sessions could be opened there when it answered."""
        self._rooms[replica] = sessions

    def opening(self, replica: str) -> None:
        """A session is to be opened there: there is room for one less, until it answers again."""
        self._rooms[replica] = self._rooms.get(replica, 0) - 1

    def rooms(self, replicas: Sequence[str]) -> dict[str, int]:
        """How many sessions each of these could open, as far as is known; none where it has not answered yet."""
        return {replica: self._rooms.get(replica, 0) for replica in replicas}

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
