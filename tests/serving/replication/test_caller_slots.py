"""Slots of callers: never more than there are, and never lost."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from serving.replication.caller_slots import OPENING_S, CallerSlots, MemoryKeys


class SlowKeys(MemoryKeys):
    """Its answers take a moment, so that those who ask at once come between each other's."""

    def __init__(self) -> None:
        super().__init__()
        self._random, self._lock = random.Random(0), threading.Lock()

    def create(self, key: str, value: bytes) -> bool:
        time.sleep(self._random.uniform(0, 0.002))
        with self._lock:
            return super().create(key, value)

    def keys(self, prefix: str) -> list[str]:
        time.sleep(self._random.uniform(0, 0.002))
        with self._lock:
            return super().keys(prefix)

    def delete(self, key: str) -> None:
        time.sleep(self._random.uniform(0, 0.002))
        with self._lock:
            super().delete(key)


class World:
    """Sessions that are open (True) or over (False), a clock, and the slots."""

    def __init__(self) -> None:
        self.sessions: dict[str, bool] = {}
        self.now = 1000.0
        self.keys = MemoryKeys()
        self.slots = self.manager()

    def manager(self) -> CallerSlots:
        """The slots as one more process sees them."""
        return CallerSlots(self.keys, self.sessions.get, lambda: self.now)

    def open(self, session: str, most: int = 2) -> bool:
        won = self.slots.reserve("anna", session, most)
        if won:
            self.sessions[session] = True
        return won


def test_a_caller_has_so_many_sessions_and_no_more() -> None:
    world = World()
    assert [world.open(name) for name in "abc"] == [True, True, False]
    assert world.slots.reserve("berta", "d", 2)


def test_a_session_that_is_over_makes_room_at_once() -> None:
    world = World()
    world.open("a"), world.open("b")
    world.sessions["a"] = False
    assert [world.open("c"), world.open("d")] == [True, False]


def test_a_session_that_was_forgotten_makes_room() -> None:
    world = World()
    world.open("a"), world.open("b")
    del world.sessions["a"]
    world.now += OPENING_S
    assert [world.open("c"), world.open("d")] == [True, False]


def test_a_session_whose_manager_died_as_it_opened_makes_room_when_it_can_not_open_any_more() -> None:
    world = World()
    world.open("a")
    assert world.slots.reserve("anna", "never opened", 2)
    assert not world.open("b")
    world.now += OPENING_S
    assert world.open("b")


def test_a_session_that_could_not_be_opened_makes_room_at_once() -> None:
    world = World()
    world.open("a")
    world.slots.reserve("anna", "refused", 2)
    world.manager().release("anna", "refused")
    assert world.open("b")
    world.slots.release("anna", "b")
    assert not world.open("c")


def test_what_is_asked_for_again_has_its_place_already() -> None:
    world = World()
    world.open("a")
    assert [world.manager().reserve("anna", "b", 2) for _ in range(3)] == [True, True, True]
    assert not world.open("c")


def test_few_keys_are_left_of_many_sessions() -> None:
    world = World()
    for number in range(100):
        assert world.open(str(number))
        world.sessions[str(number)] = False
    assert len(world.keys.keys("")) <= 2


def test_who_comes_so_late_that_the_slot_was_held_and_left_meanwhile_has_not_got_it() -> None:
    world = World()
    world.open("a", most=1)
    world.sessions["a"] = False
    create = world.keys.create

    def overtaken(key: str, value: bytes) -> bool:
        world.keys.create = create  # type: ignore[method-assign]
        assert world.open("b", most=1)
        world.sessions["b"] = False
        assert world.open("c", most=1)
        return create(key, value)

    world.keys.create = overtaken  # type: ignore[method-assign]
    assert not world.open("late", most=1)


def test_of_fifty_at_once_no_more_get_in_than_may_and_no_fewer() -> None:
    for seed in range(10):
        world, sessions = World(), dict.fromkeys(map(str, range(3)), False)
        world.keys = SlowKeys()
        before = world.manager()
        for name in sessions:  # Slots that were held before are taken over.
            before.reserve("anna", name, 3)
        world.sessions = sessions

        def reserve(name: str, world: World = world) -> bool:
            return world.manager().reserve("anna", name, 8)

        with ThreadPoolExecutor(50) as threads:
            won = list(threads.map(reserve, [f"{seed} {number}" for number in range(50)]))
        assert sum(won) == 8
