"""The benchmark that attaches, against a server that answers without making anything."""

from __future__ import annotations

import asyncio

from benchmarks.attaches import Attaches, attach
from serving.client.aio import AsyncClient
from tests.serving.fake_sessions import FakeServer, serving


async def attached(sessions: int, *, ends: bool = False) -> Attaches:
    server = FakeServer()
    async with serving(server) as address, AsyncClient(address) as client:
        for _ in range(sessions):
            await client.create()
        attaching = asyncio.create_task(attach(address, seconds=0.5, per_second=40))
        if ends:
            while not server.watched:
                await asyncio.sleep(0.001)
            server.sessions.clear()
        return await attaching


def test_sessions_are_watched_so_many_times_a_second_until_the_first_event() -> None:
    found = asyncio.run(attached(2))
    assert (len(found.ms), found.failed.total()) == (20, 0)
    assert found.summary["answered"] == 20


def test_what_is_refused_is_counted_by_its_code() -> None:
    found = asyncio.run(attached(1, ends=True))
    assert found.failed["NOT_FOUND"] == 20 - len(found.ms) > 0
