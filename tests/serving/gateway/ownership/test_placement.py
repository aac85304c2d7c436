"""Where sessions are opened, by what replicas said of their room when they last answered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from serving.errors import SlotsFull
from serving.gateway.ownership.placement import prepare, roomiest
from serving.gateway.ownership.replica_pool import Replicas
from serving.replication.contacts import Contacts

SPEC: Any = "a session"


class Denoisers:
    """Open a session at each call, those that are not `full`, and note who was called."""

    def __init__(self, *names: str, full: str = "") -> None:
        self.called: list[str] = []
        self._names, self._full = names, full

    async def replicas(self) -> Replicas:
        return Replicas(self._names)

    async def call(self, replica: str, method: str, *_: Any, **__: Any) -> str:
        self.called.append(replica)
        await asyncio.sleep(0)
        if replica in self._full:
            raise SlotsFull(f"{replica} is full")
        return f"{method}d on {replica}"


def told(rooms: Mapping[str, int]) -> Contacts:
    contacts = Contacts()
    for replica, room in rooms.items():
        contacts.has_room(replica, room)
    return contacts


async def opened(pool: Any, contacts: Contacts) -> Any:
    return await prepare(pool, contacts, "attempt", SPEC, tried=lambda _: None, timeout_s=1)


def test_of_many_replicas_the_one_with_most_room_is_asked_and_no_other() -> None:
    pool = Denoisers(*map(str, range(64)))
    contacts = told({str(number): number % 40 for number in range(64)})
    assert asyncio.run(opened(pool, contacts)) == "prepared on 39"
    assert pool.called == ["39"]


def test_where_it_has_filled_up_meanwhile_the_next_one_is_asked() -> None:
    pool = Denoisers("a", "b", full="a")
    assert asyncio.run(opened(pool, told({"a": 2, "b": 1}))) == "prepared on b"
    with pytest.raises(SlotsFull):
        asyncio.run(opened(Denoisers("a", full="a"), told({"a": 2})))


def test_a_replica_that_has_said_nothing_yet_is_asked_last() -> None:
    pool = Denoisers("new", "b", full="b")
    assert asyncio.run(opened(pool, told({"b": 1}))) == "prepared on new"
    assert pool.called == ["b", "new"]


def test_sessions_that_are_opened_at_once_are_spread() -> None:
    pool, contacts = Denoisers("a", "b"), told({"a": 2, "b": 2})

    async def open_four() -> None:
        await asyncio.gather(*(opened(pool, contacts) for _ in range(4)))

    asyncio.run(open_four())
    assert sorted(pool.called) == ["a", "a", "b", "b"]


def test_a_session_moves_to_the_roomiest_replica_if_any_has_room() -> None:
    pool: Any = Denoisers("a", "b", "c")
    assert asyncio.run(roomiest(pool, told({"a": 1, "b": 2}))) == "b"
    assert asyncio.run(roomiest(pool, told({"a": 0}))) is None
