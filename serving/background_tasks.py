"""Tasks that nobody waits for, or for no longer than so: how each ends is looked at all the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


async def wait_without_cancelling(task: asyncio.Future[T]) -> T:
    """The result of a task that goes on where who waits for it here is cancelled.

    If everybody who waited was cancelled and it fails, asyncio logs that once the task is freed; `asyncio.shield`
    would not.
    """
    await asyncio.wait([task])
    return task.result()


async def within(seconds: float | None, work: Awaitable[T], late: Callable[[], Exception]) -> T:
    """What `work` gives. Raises `late` where so many seconds are not enough for it."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await work
    except TimeoutError:
        if not limit.expired():
            raise
        raise late() from None


class BackgroundTasks:
    """Tasks that run beside what began them, each kept until it ends. An error that ends one is logged.

    Without those that are vital their owner does not work: `check` belongs to the health of its process.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._vital: list[asyncio.Task[None]] = []

    def start(
        self, what: str, work: Coroutine[Any, Any, None], *, vital: bool = False, session: str = ""
    ) -> asyncio.Task[None]:
        """Run `work`; the log calls it `what`, of a `session` where it is one's."""
        task = asyncio.create_task(work, name=what)
        self._tasks.add(task)
        if vital:
            self._vital.append(task)
        task.add_done_callback(partial(self._ended, session))
        return task

    def check(self) -> None:
        """Raise RuntimeError once a vital task has ended, unless it was cancelled."""
        for task in self._vital:
            if task.done() and not task.cancelled():
                raise RuntimeError(f"{task.get_name()} has ended: {task.exception()!r}")

    async def stop(self) -> None:
        """Cancel all of them, and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, session: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            extra = {"what": task.get_name()} | ({"session": session} if session else {})
            logger.error("a task failed", extra=extra, exc_info=error)
