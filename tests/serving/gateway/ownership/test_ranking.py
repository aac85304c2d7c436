from __future__ import annotations

from random import Random

from serving.gateway.ownership.ranking import by_room


def test_who_has_most_room_is_asked_first_and_full_ones_too() -> None:
    assert by_room({"a": 1, "b": 3, "c": 0}) == ["b", "a", "c"]


def test_the_one_to_avoid_is_asked_last_however_much_room_it_has() -> None:
    assert by_room({"a": 1, "b": 3, "c": 0}, avoid="b") == ["a", "c", "b"]


def test_of_equal_ones_chance_decides_and_the_same_chance_decides_the_same() -> None:
    rooms = dict.fromkeys("abcdef", 2)
    orders = {tuple(by_room(rooms, draw=Random(seed).random)) for seed in range(20)}
    assert len(orders) > 5
    assert by_room(rooms, draw=Random(1).random) == by_room(rooms, draw=Random(1).random)
