"""Where sessions are opened, by what replicas said of their room when they last answered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from serving.errors import ReplicaLost, SlotsFull
from serving.gateway.ownership.placement import prepare, roomiest
from serving.gateway.ownership.replica_pool import Replicas
from serving.replication.contacts import Contacts

SPEC: Any = "a session"


class Denoisers:
    """Open a session at each call while they have room, and note who was asked for that, and who was called."""

    def __init__(self, rooms: Mapping[str, int]) -> None:
        self.asked: list[str] = []
        self.called: list[str] = []
        self._rooms = dict(rooms)

    async def replicas(self) -> Replicas:
        return Replicas(list(self._rooms))

    async def call(self, replica: str, method: str, *_: Any, **__: Any) -> Any:
        await asyncio.sleep(0)
        if method == "room":
            self.asked.append(replica)
            return self._rooms[replica]
        self.called.append(replica)
        if not self._rooms[replica]:
            raise SlotsFull(f"{replica} is full")
        self._rooms[replica] -= 1
        return f"{method}d on {replica}"


def told(rooms: Mapping[str, int]) -> Contacts:
    contacts = Contacts()
    for replica, room in rooms.items():
        contacts.heard_room(replica, room)
    return contacts


async def opened(pool: Any, contacts: Contacts) -> Any:
    return await prepare(pool, contacts, "attempt", SPEC, tried=lambda _: None, timeout_s=1)


def test_of_many_replicas_few_are_asked_and_the_roomiest_opens_it() -> None:
    rooms = {str(number): number % 40 for number in range(64)}
    pool = Denoisers(rooms)
    assert asyncio.run(opened(pool, told(rooms))) == "prepared on 39"
    assert (sorted(pool.asked), pool.called) == (["36", "37", "38", "39"], ["39"])


def test_what_replicas_say_now_counts_more_than_what_they_said_last() -> None:
    pool = Denoisers({"a": 1, "b": 2})
    assert asyncio.run(opened(pool, told({"a": 2, "b": 1}))) == "prepared on b"


def test_where_those_that_seemed_roomiest_are_full_by_now_another_one_opens_it() -> None:
    pool = Denoisers({"a": 0, "b": 0, "c": 0, "d": 0, "e": 1})
    assert asyncio.run(opened(pool, told({"a": 9, "b": 9, "c": 9, "d": 9, "e": 1}))) == "prepared on e"
    with pytest.raises(SlotsFull):
        asyncio.run(opened(Denoisers({"a": 0}), told({"a": 2})))


def test_a_replica_says_that_it_is_too_late_before_nobody_waits_for_it_any_more() -> None:
    class Noting(Denoisers):
        async def call(self, replica: str, method: str, *arguments: Any, timeout_s: float) -> Any:
            if method == "prepare":
                times.append((arguments[-1], timeout_s))
            return await super().call(replica, method)

    times: list[tuple[float, float]] = []
    asyncio.run(opened(Noting({"a": 1}), told({"a": 1})))
    ((inside, outside),) = times
    assert 0 < inside < outside


def test_a_replica_that_has_said_nothing_yet_is_asked_as_well() -> None:
    assert asyncio.run(opened(Denoisers({"new": 1, "b": 0}), told({"b": 1}))) == "prepared on new"


def test_sessions_that_are_opened_at_once_are_spread() -> None:
    rooms = {"a": 2, "b": 2, "c": 0, "d": 0, "e": 0}
    pool, contacts = Denoisers(rooms), told(rooms)

    async def open_four() -> list[Any]:
        return await asyncio.gather(*(opened(pool, contacts) for _ in range(4)))

    assert sorted(asyncio.run(open_four())) == ["prepared on a"] * 2 + ["prepared on b"] * 2


def test_a_session_moves_to_the_roomiest_replica_if_any_has_room() -> None:
    pool: Any = Denoisers({"a": 1, "b": 2, "c": 0})
    assert asyncio.run(roomiest(pool, told({"a": 2, "b": 2}), 1)) == "b"
    assert asyncio.run(roomiest(pool, told({}), 1)) == "b"
    full: Any = Denoisers({"a": 0})
    assert asyncio.run(roomiest(full, told({"a": 1}), 1)) is None
    assert asyncio.run(roomiest(full, told({"a": 1}), 0)) == "a"


def test_where_no_denoiser_answers_that_is_said() -> None:
    with pytest.raises(ReplicaLost, match="no denoiser answers: it is starting, or stopped; try again"):
        asyncio.run(opened(Denoisers({}), told({})))
