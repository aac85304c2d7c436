from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from serving.client.event_queue import EventQueue
from serving.pb.longtake.v1 import sessions_pb2 as pb


def chunk(first: int, frames: int = 12, take: int = 0) -> pb.Event:
    units = [pb.AccessUnit(frame=frame) for frame in range(first, first + frames)]
    return pb.Event(take=take, chunk=pb.Chunk(first_frame=first, units=units))


def taken(queue: EventQueue) -> list[pb.Event]:
    async def take() -> list[pb.Event]:
        queue.finish()
        found = []
        while (event := await queue.get()) is not None:
            found.append(event)
        assert await queue.get() is None
        return found

    return asyncio.run(take())


def test_events_come_in_order() -> None:
    queue, events = EventQueue(), [chunk(12 * number) for number in range(5)]
    for event in events:
        queue.put(event)
    assert taken(queue) == events


def test_a_reader_that_waits_is_given_what_comes() -> None:
    async def run() -> None:
        queue = EventQueue()
        reading = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.put(chunk(0))
        async with asyncio.timeout(30):
            assert await reading == chunk(0)

    asyncio.run(run())


def test_of_what_is_lost_the_newest_state_is_told() -> None:
    queue = EventQueue(most=2)
    for number in range(4):
        queue.put(pb.Event(state=pb.Session(next_frame=number)))
    queue.put(chunk(0))
    assert [event.state.next_frame for event in taken(queue)[:2]] == [2, 3]


def test_a_gap_of_an_earlier_take_is_not_told() -> None:
    queue = EventQueue(most=1)
    for event in (chunk(0), chunk(12), chunk(0, take=1), chunk(12, take=1)):
        queue.put(event)
    gap, last = taken(queue)
    assert (gap.take, gap.gap.first_frame, gap.gap.frames) == (1, 0, 12)
    assert last == chunk(12, take=1)


@given(st.integers(1, 8), st.lists(st.booleans(), max_size=60))
def test_frames_and_gaps_together_are_all_frames(most: int, reads: list[bool]) -> None:
    async def run() -> None:
        queue, seen = EventQueue(most), 0
        for number, read in enumerate(reads):
            queue.put(chunk(12 * number))
            event = await queue.get() if read else None
            seen = follow(event, seen)
        queue.finish()
        while (event := await queue.get()) is not None:
            seen = follow(event, seen)
        assert seen == 12 * len(reads)

    asyncio.run(run())


def follow(event: pb.Event | None, seen: int) -> int:
    """The frame behind an event that begins where the one before ended."""
    if event is None:
        return seen
    if event.HasField("gap"):
        assert event.gap.first_frame == seen
        return seen + event.gap.frames
    assert event.chunk.first_frame == seen
    return seen + len(event.chunk.units)
