"""Streams of a manager that is being taken away."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator

import pytest

from serving.gateway import stream_handoff
from serving.gateway.stream_handoff import StreamHandoff
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent


class Source:
    """A stream without an end, which notes that it was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    async def events(self) -> AsyncGenerator[SerializedEvent]:
        try:
            while True:
                yield SerializedEvent.of(pb.Event(heartbeat=pb.Heartbeat()))
                await asyncio.sleep(0)
        finally:
            self.is_closed = True


async def taken(handoff: StreamHandoff, source: Source, begin_after: int) -> list[pb.Event]:
    """What comes until the stream ends; the handoff begins after so many events."""
    found: list[pb.Event] = []
    async with asyncio.timeout(20):
        async for sent in handoff.while_here(source.events()):
            found.append(sent.event)
            if len(found) == begin_after:
                handoff.begin()
    return found


def test_a_stream_ends_with_a_word_to_come_again_and_closes_what_it_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_handoff, "SPREAD_S", 0.0)
    source = Source()
    found = asyncio.run(taken(StreamHandoff(), source, 3))
    assert [event.HasField("heartbeat") for event in found] == [True, True, True, False]
    assert found[-1].end.reason == pb.STREAM_END_REASON_MOVED
    assert source.is_closed


def test_streams_do_not_all_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()
    monkeypatch.setattr(stream_handoff, "_now", lambda: 0.001 * next(looks))
    handoff = StreamHandoff()

    async def all_of_them() -> list[int]:
        handoff.begin()
        streams = await asyncio.gather(*(taken(handoff, Source(), 0) for _ in range(20)))
        return [len(found) for found in streams]

    assert len(set(asyncio.run(all_of_them()))) > 5


def test_a_stream_goes_on_for_as_long_as_its_process_stays() -> None:
    async def watch() -> None:
        stream = StreamHandoff().while_here(Source().events())
        for _ in range(200):
            assert (await anext(stream)).event.HasField("heartbeat")
        await stream.aclose()

    asyncio.run(watch())
