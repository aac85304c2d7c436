"""How many sessions a caller has, agreed on by all managers: a slot is a session's while it lasts.

A slot's holders are keys in a store that all managers share, `CALLER:SLOT:HOLDER` with numbers that rise. To take
a slot is to create the key behind its last one, which succeeds for one of all who try; only then are those before
it deleted, and the last one never is. So whoever creates a key that was deleted finds a higher one, and no slot.

A slot is held for as long as the register says that its session is there. One that the register does not know is
being opened, or was given up on the way by a manager that died: the slot is free once that is certain.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple, Protocol

from typing_extensions import override

OPENING_S = 60.0
"""The longest that a session takes to open. It is no longer than the end of one is remembered."""


class KeyValues(Protocol):
    """A store of keys in which all managers see each other's writes at once."""

    def create(self, key: str, value: bytes) -> bool:
        """Whether the key was not there, and is now."""

    def put(self, key: str, value: bytes) -> None:
        """Write a key."""

    def get(self, key: str) -> bytes | None:
        """What a key says."""

    def delete(self, key: str) -> None:
        """Take a key away; one that is not there is no error."""

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin so."""


class Holder(NamedTuple):
    """Who holds a slot, or nobody; `since` is Unix time, `try_id` is of one try to take it."""

    session_id: str
    since: float
    try_id: str


class CallerSlots:
    """The slots of all callers in `store`.

    `is_there` says of a session whether it is open (True), over (False) or unknown to the register (None).
    `clock` is Unix time: hosts have to agree on it to within some seconds.
    """

    def __init__(
        self, store: KeyValues, is_there: Callable[[str], bool | None], clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._is_there = is_there
        self._clock = clock

    def reserve(self, caller: str, session_id: str, most: int) -> bool:
        """Whether one of the caller's `most` slots is the session's, now or already."""
        while True:
            last = self._last_holders(caller)
            held = {slot: holder for slot, (_, holder) in last.items() if self._holds(holder)}
            if any(holder.session_id == session_id for holder in held.values()):
                return True
            free = [slot for slot in range(most) if slot not in held]
            if not free:
                return False
            for slot in free:
                number = last[slot][0] + 1 if slot in last else 1
                if self._take(f"{caller}:{slot:06d}:", number, session_id):
                    return True

    def sessions(self, caller: str) -> list[str]:
        """The sessions that have one of the caller's slots."""
        return [holder.session_id for _, holder in self._last_holders(caller).values() if self._holds(holder)]

    def release(self, caller: str, session_id: str) -> None:
        """The session could not be opened. One that is there keeps its slot."""
        if self._is_there(session_id):
            return
        for slot, (number, holder) in self._last_holders(caller).items():
            if holder.session_id == session_id:
                self._store.put(f"{caller}:{slot:06d}:{number:010d}", _encoded(Holder("", 0.0, "")))

    def _last_holders(self, caller: str) -> dict[int, tuple[int, Holder]]:
        """By slot, with their numbers."""
        last: dict[int, int] = {}
        for key in self._store.keys(f"{caller}:"):
            _, slot, number = key.split(":")
            last[int(slot)] = max(last.get(int(slot), 0), int(number))
        found = {
            slot: (number, self._store.get(f"{caller}:{slot:06d}:{number:010d}")) for slot, number in last.items()
        }
        return {slot: (number, _decoded(data)) for slot, (number, data) in found.items() if data is not None}

    def _holds(self, holder: Holder) -> bool:
        if not holder.session_id:
            return False
        there = self._is_there(holder.session_id)
        return self._clock() - holder.since < OPENING_S if there is None else there

    def _take(self, slot: str, number: int, session_id: str) -> bool:
        """Become the slot's holder of that number; False if another one is, or a later one."""
        key, value = f"{slot}{number:010d}", _encoded(Holder(session_id, self._clock(), uuid.uuid4().hex))
        # A store's client repeats what it sends: the key that is there already may be this one.
        if not self._store.create(key, value) and self._store.get(key) != value:
            return False
        others = [other for other in self._store.keys(slot) if other != key]
        if any(other > key for other in others):
            self._store.delete(key)
            return False
        for other in others:
            self._store.delete(other)
        return True


class MemoryKeys(KeyValues):
    """The store of a server that is one process."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    @override
    def create(self, key: str, value: bytes) -> bool:
        return self._values.setdefault(key, value) is value

    @override
    def put(self, key: str, value: bytes) -> None:
        self._values[key] = value

    @override
    def get(self, key: str) -> bytes | None:
        return self._values.get(key)

    @override
    def delete(self, key: str) -> None:
        self._values.pop(key, None)

    @override
    def keys(self, prefix: str) -> list[str]:
        return [key for key in list(self._values) if key.startswith(prefix)]


def _encoded(holder: Holder) -> bytes:
    return json.dumps(holder).encode()


def _decoded(data: bytes) -> Holder:
    return Holder(*json.loads(data))
