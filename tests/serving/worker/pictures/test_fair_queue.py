"""A thread that works for several who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from serving.worker.pictures.fair_queue import MOST_CREDIT_S, FairQueue


class Sender:
    """Somebody who has work."""


class Thread:
    """A queue for a thread whose work takes as long as it says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.served = list[str]()
        self.queue = FairQueue(ThreadPoolExecutor(1), lambda: self.now)

    async def work(self, who: Sender, name: str, seconds: float) -> None:
        await self.queue.run(who, lambda: self._done(name, seconds))

    def _done(self, name: str, seconds: float) -> None:
        self.served.append(name)
        self.now += seconds


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await work()

    asyncio.run(bounded())


def test_who_has_had_least_of_the_thread_is_next() -> None:
    async def ask() -> None:
        thread, greedy, modest = Thread(), Sender(), Sender()
        await thread.work(greedy, "greedy", 0.5)
        waiting = [thread.work(greedy, "greedy", 0.5) for _ in range(3)]
        waiting += [thread.work(modest, "modest", 0.01) for _ in range(3)]
        await asyncio.gather(*waiting)
        assert thread.served == ["greedy", "greedy", "modest", "modest", "modest", "greedy", "greedy"]

    run(ask)


def test_who_needed_less_for_long_has_no_more_than_some_credit() -> None:
    async def ask() -> None:
        thread, greedy, modest = Thread(), Sender(), Sender()
        await thread.work(modest, "modest", 0.0)
        await thread.work(greedy, "greedy", 100.0)
        waiting = [thread.work(greedy, "greedy", 0.3) for _ in range(8)]
        waiting += [thread.work(modest, "modest", 0.3) for _ in range(8)]
        await asyncio.gather(*waiting)
        ahead_s = 0.3 * thread.served[3:].index("greedy")
        assert MOST_CREDIT_S <= ahead_s < MOST_CREDIT_S + 2 * 0.3

    run(ask)


def test_newcomers_do_not_make_up_for_the_time_before_they_came() -> None:
    async def ask() -> None:
        thread, old = Thread(), Sender()

        async def go_on(who: Sender, name: str) -> None:
            while len(thread.served) < 21:
                await thread.work(who, name, 0.01)

        await thread.work(old, "old", 100.0)
        going_on = [asyncio.create_task(go_on(old, "old"))]
        await asyncio.sleep(0)
        going_on += [asyncio.create_task(go_on(Sender(), "new")) for _ in range(3)]
        await asyncio.gather(*going_on)
        assert thread.served[1:21].count("old") == 5

    run(ask)


def test_what_fails_or_is_given_up_holds_nobody_up() -> None:
    async def ask() -> None:
        queue, one, two, is_over = FairQueue(ThreadPoolExecutor(1)), Sender(), Sender(), Event()
        running = asyncio.create_task(queue.run(one, lambda: is_over.wait(20)))
        await asyncio.sleep(0)
        given_up = asyncio.create_task(queue.run(two, lambda: None))
        await asyncio.sleep(0)
        given_up.cancel()
        is_over.set()
        await asyncio.wait([running, given_up])
        with pytest.raises(ZeroDivisionError):
            await queue.run(two, lambda: 1 / 0)
        assert await queue.run(one, lambda: 5) == 5

    run(ask)
