"""A thread that works for several who ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.worker.pictures.fair_queue import MOST_CREDIT_S, FairQueue


class Sender:
    """Somebody who has work."""


def queue() -> FairQueue:
    return FairQueue(ThreadPoolExecutor(1))


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await work()

    asyncio.run(bounded())


def test_who_has_had_least_of_the_thread_is_next() -> None:
    async def ask() -> None:
        asked, served = queue(), list[str]()
        greedy, modest = Sender(), Sender()

        def work(name: str, seconds: float) -> None:
            served.append(name)
            time.sleep(seconds)

        await asked.run(greedy, lambda: work("greedy", 0.05))
        waiting = [asked.run(greedy, lambda: work("greedy", 0.05)) for _ in range(3)]
        waiting += [asked.run(modest, lambda: work("modest", 0.001)) for _ in range(3)]
        await asyncio.gather(*waiting)
        assert served == ["greedy", "greedy", "modest", "modest", "modest", "greedy", "greedy"]

    run(ask)


def test_who_needed_less_for_long_has_no_more_than_some_credit() -> None:
    async def ask() -> None:
        asked, greedy, modest = queue(), Sender(), Sender()
        await asked.run(modest, lambda: None)
        await asked.run(greedy, lambda: None)
        asked._had[greedy] = 100.0
        running = asyncio.create_task(asked.run(greedy, lambda: time.sleep(0.05)))
        await asyncio.sleep(0)
        await asyncio.gather(running, asked.run(modest, lambda: None))
        assert 100.0 - MOST_CREDIT_S <= asked._had[modest] < 100.0

    run(ask)


def test_newcomers_do_not_make_up_for_the_time_before_they_came() -> None:
    async def ask() -> None:
        asked, served = queue(), list[str]()
        old, new = Sender(), [Sender() for _ in range(3)]

        def work(name: str) -> None:
            served.append(name)
            time.sleep(0.01)

        async def go_on(who: Sender, name: str) -> None:
            while len(served) < 20:
                await asked.run(who, lambda: work(name))

        await asked.run(old, lambda: None)
        asked._had[old] = 100.0
        going_on = [asyncio.create_task(go_on(old, "old"))]
        await asyncio.sleep(0)
        going_on += [asyncio.create_task(go_on(who, "new")) for who in new]
        await asyncio.gather(*going_on)
        assert served.count("old") >= 4

    run(ask)


def test_what_fails_or_is_given_up_holds_nobody_up() -> None:
    async def ask() -> None:
        asked, one, two = queue(), Sender(), Sender()
        running = asyncio.create_task(asked.run(one, lambda: time.sleep(0.05)))
        await asyncio.sleep(0)
        given_up = asyncio.create_task(asked.run(two, lambda: None))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([running, given_up])
        with pytest.raises(ZeroDivisionError):
            await asked.run(two, lambda: 1 / 0)
        assert await asked.run(one, lambda: 5) == 5

    run(ask)
