"""The first answers to a session's commands, by the ids that their clients gave them.

A client that has had no answer asks again with the same ids; what was done is then not done again. The log is
plain data, part of the session's record: so it outlives the replica.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from serving.errors import CommandIdReused, InvalidRequest
from serving.session.types import LoggedReceipt, Receipt, Refusal

MOST_RECEIPTS = 256
"""Older ones are forgotten: their commands would be done again."""

MAX_ID_CHARACTERS = 200


def check_ids(client_id: str, command_id: str) -> None:
    """Raise InvalidRequest for ids that are too long to be kept."""
    for name, value in (("client_id", client_id), ("command id", command_id)):
        if len(value) > MAX_ID_CHARACTERS:
            raise InvalidRequest(
                f"the {name} has {len(value)} characters; it may have at most {MAX_ID_CHARACTERS}"
            )


class ReceiptLog:
    """The last MOST_RECEIPTS answers. Nothing is kept, or found, for commands that lack one of their ids."""

    def __init__(self, entries: Iterable[LoggedReceipt] = ()) -> None:
        self._entries: OrderedDict[tuple[str, str], LoggedReceipt] = OrderedDict()
        self.count = 0
        self.extend(entries)

    @property
    def entries(self) -> tuple[LoggedReceipt, ...]:
        """Those that are kept, the oldest first."""
        return tuple(self._entries.values())

    def since(self, count: int) -> tuple[LoggedReceipt, ...]:
        """Those kept of what was added after `count` of them were there: what a copy lacks that had so many."""
        missing = self.count - count
        return self.entries[-missing:] if missing > 0 else ()

    def extend(self, entries: Iterable[LoggedReceipt]) -> None:
        """Take over what another log has given `since`."""
        for entry in entries:
            self._entries[entry.client_id, entry.command_id] = entry
            self.count += 1
            if len(self._entries) > MOST_RECEIPTS:
                self._entries.popitem(last=False)

    def find(self, client_id: str, command_id: str, content: bytes) -> Receipt | Refusal | None:
        """The first answer to a command that is asked for again.

        Raises InvalidRequest for ids that are too long, and CommandIdReused if they were another command's.
        """
        check_ids(client_id, command_id)
        entry = self._entries.get((client_id, command_id))
        if entry is None:
            return None
        if entry.content != content:
            raise CommandIdReused(
                f"the command id {command_id!r} was used before, for another command; give each its own"
            )
        return entry.answer

    def add(self, client_id: str, command_id: str, content: bytes, answer: Receipt | Refusal) -> None:
        """Keep the answer to a command for which `find` had none."""
        if client_id and command_id:
            self.extend([LoggedReceipt(client_id, command_id, content, answer)])
