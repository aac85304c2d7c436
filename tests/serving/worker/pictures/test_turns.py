"""A thread that works for several who ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.worker.pictures.turns import MOST_CREDIT_S, Turns


class Sender:
    """Somebody who has work."""


def turns() -> Turns:
    return Turns(ThreadPoolExecutor(1))


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await work()

    asyncio.run(bounded())


def test_who_has_had_least_of_the_thread_is_next() -> None:
    async def ask() -> None:
        asked, served = turns(), list[str]()
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


def test_who_comes_late_has_no_more_than_some_credit() -> None:
    async def ask() -> None:
        asked, early, late = turns(), Sender(), Sender()
        await asked.run(late, lambda: None)
        asked._had[early] = 100.0
        blocker = asyncio.create_task(asked.run(early, lambda: time.sleep(0.05)))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(asked.run(early, lambda: None))
        await asyncio.sleep(0)
        await asyncio.gather(blocker, waiting, asked.run(late, lambda: None))
        assert 100.0 - MOST_CREDIT_S <= asked._had[late] < 100.0

    run(ask)


def test_what_fails_or_is_given_up_holds_nobody_up() -> None:
    async def ask() -> None:
        asked, one, two = turns(), Sender(), Sender()
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
