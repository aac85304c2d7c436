"""Those who come to watch a session at about the same time, asked for together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from serving.background_tasks import wait_without_cancelling

T = TypeVar("T")

ROUND_S = 0.1
"""From one question to the next: however many come, the session's replica hears of ten rounds a second."""


class Arrivals(Generic[T]):
    """Asks on behalf of all who came since the question before was sent: what they are told is newer than that.

    `ask` is given the lowest frame that any of them wants; None where nobody wants one.
    """

    def __init__(self, ask: Callable[[int | None], Awaitable[T]]) -> None:
        self._ask = ask
        self._coming: asyncio.Task[T] | None = None
        self._wanted: list[int] = []
        self._next_at = 0.0
        self._turn = asyncio.Lock()

    async def answer(self, from_frame: int | None) -> T:
        """What is answered to a question that is sent from now on. Raises what `ask` raises."""
        if from_frame is not None:
            self._wanted.append(from_frame)
        if self._coming is None:
            self._coming = asyncio.create_task(self._round())
        return await wait_without_cancelling(self._coming)

    async def _round(self) -> T:
        loop = asyncio.get_running_loop()
        async with self._turn:
            await asyncio.sleep(max(0.0, self._next_at - loop.time()))
            self._next_at = loop.time() + ROUND_S
            wanted, self._wanted, self._coming = self._wanted, [], None
            return await self._ask(min(wanted, default=None))
