from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from serving.errors import LimitReached, SessionFailed
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol import event_queue
from serving.protocol.event_broadcast import TRIM_EVERY, EventBroadcast
from serving.protocol.event_queue import MOST_CHUNKS
from serving.protocol.events import SerializedEvent


def chunk(block: int) -> SerializedEvent:
    made = pb.Chunk(first_frame=12 * block, units=[pb.AccessUnit()] * 12)
    return SerializedEvent.of(pb.Event(seq=block + 1, chunk=made))


def progress(number: int) -> SerializedEvent:
    return SerializedEvent.of(pb.Event(seq=number, progress=pb.Progress(current_start_frame=number)))


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(bounded())


def test_every_reader_gets_all_that_comes_after_it_joined() -> None:
    async def read() -> None:
        broadcast = EventBroadcast()
        early = broadcast.join()
        broadcast.put(progress(1))
        late = broadcast.join()
        broadcast.put(progress(2))
        assert [sent.event.seq for sent in await early.batch()] == [1, 2]
        assert [sent.event.seq for sent in await late.batch()] == [2]

    run(read())


def test_a_reader_that_waits_is_woken_by_the_next_event() -> None:
    async def read() -> None:
        broadcast = EventBroadcast()
        waiting = [asyncio.create_task(broadcast.join().batch()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        broadcast.put(progress(1))
        assert [sent.event.seq for task in waiting[1:] for sent in await task] == [1, 1]

    run(read())


def test_a_slow_reader_finds_a_gap_where_chunks_were_and_everything_else() -> None:
    async def read() -> None:
        broadcast = EventBroadcast()
        slow, fast = broadcast.join(), broadcast.join()
        for block in range(MOST_CHUNKS + 5):
            broadcast.put(chunk(block))
            broadcast.put(progress(block))
            assert [sent.event.WhichOneof("event") for sent in await fast.batch()] == ["chunk", "progress"]
        found = [sent.event for sent in await slow.batch()]
        gaps = [event.gap for event in found if event.HasField("gap")]
        assert [(gap.first_frame, gap.frames) for gap in gaps] == [(12 * block, 12) for block in range(5)]
        chunks = [event.chunk.first_frame for event in found if event.HasField("chunk")]
        assert chunks == [12 * block for block in range(5, MOST_CHUNKS + 5)]
        assert sum(event.HasField("progress") for event in found) == MOST_CHUNKS + 5

    run(read())


def test_the_frames_of_a_gap_are_counted_for_those_who_had_not_read_them() -> None:
    async def read() -> None:
        skipped: list[int] = []
        broadcast = EventBroadcast(skipped.append)
        _, _, fast = broadcast.join(), broadcast.join(), broadcast.join()
        for block in range(MOST_CHUNKS + 2):
            broadcast.put(chunk(block))
            await fast.batch()
        assert skipped == [2 * 12, 2 * 12]

    run(read())


def test_what_all_have_read_is_forgotten() -> None:
    async def read() -> None:
        broadcast = EventBroadcast()
        readers = [broadcast.join() for _ in range(2)]
        for number in range(10 * TRIM_EVERY):
            broadcast.put(chunk(number) if number % 2 else progress(number))
            for reader in readers:
                await reader.batch()
        assert len(broadcast._events) <= TRIM_EVERY
        assert len(broadcast._chunks) <= TRIM_EVERY

    run(read())


def test_of_chunks_that_all_have_read_none_is_kept_behind_the_next() -> None:
    async def read() -> None:
        broadcast = EventBroadcast()
        reader = broadcast.join()
        for block in range(3):
            broadcast.put(chunk(block))
            await reader.batch()
        broadcast.put(chunk(3))
        assert [sent.event.chunk.first_frame for sent in broadcast._events] == [36]

    run(read())


@pytest.mark.parametrize(("most_chunks", "is_let_go"), [(MOST_CHUNKS + 2, False), (MOST_CHUNKS // 2, True)])
def test_a_reader_is_let_go_by_the_bytes_of_the_chunks_that_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, most_chunks: int, is_let_go: bool
) -> None:
    async def read() -> None:
        made = chunk(0).event
        made.chunk.units[0].data = bytes(1000)
        big = SerializedEvent.of(made)
        monkeypatch.setattr(event_queue, "MAX_WAITING_BYTES", most_chunks * len(big.data))
        broadcast = EventBroadcast()
        reader = broadcast.join()
        for _ in range(2 * MOST_CHUNKS):
            broadcast.put(big)
        if is_let_go:
            with pytest.raises(LimitReached, match="waited for this stream"):
                await reader.batch()
        else:
            assert sum(sent.span is not None for sent in await reader.batch()) == MOST_CHUNKS

    run(read())


def test_a_reader_that_lets_too_much_pile_up_is_let_go_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read() -> None:
        monkeypatch.setattr(event_queue, "MOST_EVENTS", 4 * TRIM_EVERY)
        broadcast = EventBroadcast()
        stuck, awake = broadcast.join(), broadcast.join()
        for number in range(8 * TRIM_EVERY):
            broadcast.put(progress(number))
            assert len(await awake.batch()) == 1
        assert len(broadcast._events) <= TRIM_EVERY
        with pytest.raises(LimitReached, match="read it faster"):
            await stuck.batch()

    run(read())


def test_readers_take_what_was_left_before_they_hear_of_the_end() -> None:
    async def read() -> None:
        broadcast = EventBroadcast()
        reader = broadcast.join()
        broadcast.put(progress(1))
        broadcast.finish(SessionFailed("the decoder failed"))
        assert len(await reader.batch()) == 1
        with pytest.raises(SessionFailed, match="the decoder failed"):
            await reader.batch()

    run(read())


def test_an_end_without_failure_is_an_empty_batch() -> None:
    async def read() -> None:
        broadcast = EventBroadcast()
        reader = broadcast.join()
        broadcast.finish()
        assert await reader.batch() == []

    run(read())
