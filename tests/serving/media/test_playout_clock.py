"""What a player would show."""

from __future__ import annotations

from serving.media.playout_clock import PlayerClock


def test_it_plays_from_the_first_chunk_at_its_speed() -> None:
    clock = PlayerClock(16)
    assert clock.shown(5) is None
    clock.received(0, 9, now=10)
    assert (clock.shown(10), clock.shown(10.25), clock.shown(99)) == (0, 4, 8)


def test_it_begins_wherever_the_first_chunk_does() -> None:
    clock = PlayerClock(16)
    clock.received(33, 45, now=10)
    assert clock.shown(10.5) == 41


def test_a_late_chunk_delays_what_follows() -> None:
    clock = PlayerClock(16)
    clock.received(0, 9, now=0)
    clock.received(9, 21, now=2)
    assert (clock.shown(2), clock.shown(2.25)) == (9, 13)


def test_it_stands_while_paused_and_goes_on_from_there() -> None:
    clock = PlayerClock(16)
    clock.received(0, 9, now=0)
    clock.pause(3, now=0.25)
    clock.received(9, 21, now=5)
    assert clock.shown(20) == 3
    clock.resume(now=20)
    assert clock.shown(20.5) == 11


def test_it_says_which_chunk_is_on_screen() -> None:
    clock = PlayerClock(16)
    clock.received(0, 9, now=0)
    clock.received(9, 21, now=0.1)
    assert [clock.chunk_shown(now) for now in (0, 0.5, 0.6, 9)] == [0, 0, 9, 9]


def test_rewound_it_waits_for_a_chunk() -> None:
    clock = PlayerClock(16)
    clock.received(0, 9, now=0)
    clock.rewind()
    assert clock.shown(1) is None
    clock.received(0, 9, now=5)
    assert clock.shown(5) == 0
