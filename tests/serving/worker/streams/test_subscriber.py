from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from serving.errors import LimitReached, SessionNotFound
from serving.media.chunk import AccessUnit, Chunk
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.event_queue import MOST_CHUNKS, MOST_EVENTS
from serving.protocol.events import write_chunk
from serving.replication.messages import Item, Role
from serving.worker.streams.subscriber import Subscriber

T = TypeVar("T")

BEAT_S = 0.02


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def chunk(block: int) -> Chunk:
    first, frames = (0, 9) if block == 0 else (12 * block - 3, 12)
    return Chunk(block, first, tuple(AccessUnit(b"x", n == 0) for n in range(frames)))


def put_chunk(subscriber: Subscriber, block: int, take: int = 0) -> None:
    made = chunk(block)
    event = pb.Event(take=take, chunk=write_chunk(made)).SerializeToString()
    subscriber.put_chunk(event, made.span(take))


async def taken(subscriber: Subscriber) -> list[Item]:
    """All that waits."""
    found = []
    async for item in subscriber.items(BEAT_S):
        if item == Item():
            break
        found.append(item)
    return found


async def events(subscriber: Subscriber) -> list[pb.Event]:
    return [pb.Event.FromString(item.event) for item in await taken(subscriber) if item.event is not None]


def names(found: list[pb.Event]) -> list[tuple[int, str, int]]:
    """Take, kind and first frame of events that have one."""
    return [
        (event.take, event.WhichOneof("event") or "", getattr(event, event.WhichOneof("event") or "").first_frame)
        for event in found
    ]


def test_what_is_put_comes_in_order_and_a_beat_where_nothing_was() -> None:
    async def follow() -> None:
        subscriber = Subscriber(Role.VIEWER, 0, None)
        items = aiter(subscriber.items(BEAT_S))
        subscriber.put_event(b"first")
        subscriber.put_event(b"second")
        assert [await anext(items) for _ in range(3)] == [Item(b"first"), Item(b"second"), Item()]

    run(follow())


def test_chunks_that_end_before_the_frame_asked_for_are_left_out_in_that_take_only() -> None:
    subscriber = Subscriber(Role.VIEWER, 1, 21)
    for block in range(3):
        put_chunk(subscriber, block, take=1)
    put_chunk(subscriber, 0, take=2)
    assert names(run(events(subscriber))) == [(1, "chunk", 21), (2, "chunk", 0)]


def test_a_slow_follower_is_sent_one_gap_and_the_newest_chunks() -> None:
    subscriber = Subscriber(Role.VIEWER, 0, None)
    for block in range(MOST_CHUNKS + 10):
        put_chunk(subscriber, block)
    found = run(events(subscriber))
    assert found[0].gap == pb.Gap(first_frame=0, frames=9 + 9 * 12)
    assert [event.chunk.block for event in found[1:]] == list(range(10, 10 + MOST_CHUNKS))


def test_frames_and_gaps_cover_everything_once_however_a_follower_stalls() -> None:
    async def stall() -> list[pb.Event]:
        subscriber, found = Subscriber(Role.VIEWER, 0, None), []
        for number in range(5):
            for block in range(30 * number, 30 * (number + 1)):
                put_chunk(subscriber, block)
            found += await events(subscriber)
        return found

    next_frame = 0
    for event in run(stall()):
        frames = event.gap.frames or len(event.chunk.units)
        assert (event.gap.first_frame or event.chunk.first_frame) == next_frame
        next_frame += frames
    assert next_frame == 150 * 12 - 3


def test_a_gap_comes_before_all_that_is_numbered_behind_the_first_of_its_chunks() -> None:
    subscriber = Subscriber(Role.VIEWER, 0, None)
    for block in range(MOST_CHUNKS + 2):
        put_chunk(subscriber, block)
        subscriber.put_event(pb.Event(applied=pb.AppliedCue(frame=block)).SerializeToString())
    found = [event.WhichOneof("event") for event in run(events(subscriber))]
    assert found[:4] == ["gap", "applied", "applied", "chunk"]


def test_a_gap_is_of_the_take_whose_frames_are_missing() -> None:
    subscriber = Subscriber(Role.VIEWER, 0, None)
    for block in range(40, 40 + MOST_CHUNKS):
        put_chunk(subscriber, block)
    put_chunk(subscriber, 0, take=1)
    assert names(run(events(subscriber)))[0] == (0, "gap", 477)


def test_gaps_of_two_takes_are_not_joined() -> None:
    subscriber = Subscriber(Role.VIEWER, 0, None)
    put_chunk(subscriber, 40)
    for block in range(MOST_CHUNKS + 1):
        put_chunk(subscriber, block, take=1)
    assert names(run(events(subscriber)))[:3] == [(0, "gap", 477), (1, "gap", 0), (1, "chunk", 9)]


def test_chunks_kept_for_late_comers_do_not_count_as_slowness() -> None:
    subscriber = Subscriber(Role.VIEWER, 0, 0)
    for block in range(60):
        made = chunk(block)
        event = pb.Event(chunk=write_chunk(made)).SerializeToString()
        subscriber.put_backlog(event, made.span(0))
    assert len(run(events(subscriber))) == 60


def test_a_follower_who_reads_nothing_is_let_go_and_holds_nothing() -> None:
    subscriber = Subscriber(Role.VIEWER, 0, None)
    for _ in range(MOST_EVENTS + 1):
        subscriber.put_event(b"news")
    with pytest.raises(LimitReached, match="read it faster"):
        run(taken(subscriber))
    assert len(subscriber._queue._waiting) == 0


def test_nothing_can_be_put_once_a_follower_has_been_let_go() -> None:
    subscriber = Subscriber(Role.VIEWER, 0, None)
    subscriber.finish(SessionNotFound("the session ended"))
    for block in range(2 * MOST_CHUNKS):
        put_chunk(subscriber, block)
    subscriber.put_event(b"news")
    with pytest.raises(SessionNotFound):
        run(taken(subscriber))


def test_what_waits_is_sent_before_the_end() -> None:
    subscriber = Subscriber(Role.VIEWER, 0, None)
    subscriber.put_event(b"last words")
    subscriber.finish()
    assert run(taken(subscriber)) == [Item(b"last words")]


def test_a_subscriber_that_lets_too_many_bytes_pile_up_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.protocol.event_queue.MAX_WAITING_BYTES", 1000)
    subscriber = Subscriber(Role.VIEWER, 0, None)
    for _ in range(11):
        subscriber.put_event(b"x" * 100)
    with pytest.raises(LimitReached, match="11 events with 1100 bytes"):
        run(taken(subscriber))


def test_only_viewers_and_controllers_watch() -> None:
    assert {role for role in Role if role.watches} == {Role.VIEWER, Role.CONTROLLER}
