"""Whose pictures a thread works on next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar
from weakref import WeakKeyDictionary

from serving.pipeline.stages import in_thread

T = TypeVar("T")

MOST_CREDIT_S = 1.0
"""How far who needed less of the thread falls behind the others, and is served before them."""


class FairQueue:
    """Has the one thread of `executor` work for all who ask: next for who has had least of its time.

    A newcomer counts as having had as much as who is served. `clock` tells seconds.
    """

    def __init__(self, executor: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self._executor = executor
        self._clock = clock
        self._had: WeakKeyDictionary[object, float] = WeakKeyDictionary()
        self._served = 0.0
        self._waiting: dict[asyncio.Future[None], object] = {}
        self._is_busy = False

    async def run(self, who: object, work: Callable[[], T]) -> T:
        """What `work` makes in the thread, once it is the turn of `who`."""
        await self._turn(who)
        self._served = max(self._served, self._had[who])
        began = self._clock()
        try:
            return await in_thread(self._executor, work)
        finally:
            self._had[who] += self._clock() - began
            self._next()

    async def _turn(self, who: object) -> None:
        self._had[who] = max(self._had.get(who, self._served), self._served - MOST_CREDIT_S)
        if not self._is_busy:
            self._is_busy = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = who
        try:
            await turn
        except asyncio.CancelledError:
            if self._waiting.pop(turn, None) is None:
                self._next()
            raise

    def _next(self) -> None:
        waiting = [turn for turn in self._waiting if not turn.done()]
        if not waiting:
            self._is_busy = False
            return
        turn = min(waiting, key=lambda turn: self._had[self._waiting[turn]])
        del self._waiting[turn]
        turn.set_result(None)
