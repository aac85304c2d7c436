"""An answer that all share who ask for it at about the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from serving.background_tasks import wait_without_cancelling

T = TypeVar("T")


class SharedAnswer(Generic[T]):
    """What `ask` answers, at most `kept_s` seconds ago. However many want it, one asks at a time."""

    def __init__(self, ask: Callable[[], Awaitable[T]], kept_s: float) -> None:
        self._ask = ask
        self._kept_s = kept_s
        self._asked: asyncio.Task[T] | None = None
        self._answered_at = 0.0

    async def get(self) -> T:
        """The answer. Raises what `ask` raises, which is not kept."""
        now = asyncio.get_running_loop().time()
        if self._asked is None or (self._asked.done() and now >= self._answered_at + self._kept_s):
            self._asked = asyncio.create_task(self._answer())
        return await wait_without_cancelling(self._asked)

    async def _answer(self) -> T:
        loop, self._answered_at = asyncio.get_running_loop(), float("-inf")
        answer = await self._ask()
        self._answered_at = loop.time()
        return answer
