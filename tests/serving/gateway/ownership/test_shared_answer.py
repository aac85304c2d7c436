from __future__ import annotations

import asyncio

import pytest

from serving.errors import ReplicaLost
from serving.gateway.ownership.shared_answer import SharedAnswer


class Asked:
    """Counts how often it is asked, and takes a moment; `failures` come first."""

    def __init__(self, failures: int = 0) -> None:
        self.count = 0
        self._failures = failures

    async def __call__(self) -> int:
        self.count += 1
        await asyncio.sleep(0.01)
        if self.count <= self._failures:
            raise ReplicaLost("nobody answers")
        return self.count


def test_all_who_ask_at_once_and_soon_after_share_one_answer() -> None:
    async def work() -> None:
        shared = SharedAnswer(asked := Asked(), kept_s=60)
        assert await asyncio.gather(*(shared.get() for _ in range(100))) == [1] * 100
        assert (await shared.get(), asked.count) == (1, 1)

    asyncio.run(work())


def test_an_answer_that_is_old_is_asked_for_anew() -> None:
    async def work() -> None:
        shared = SharedAnswer(Asked(), kept_s=0.05)
        first = await shared.get()
        await asyncio.sleep(0.1)
        assert [first, await shared.get()] == [1, 2]

    asyncio.run(work())


def test_a_failure_is_not_kept() -> None:
    async def work() -> None:
        shared = SharedAnswer(Asked(failures=1), kept_s=60)
        with pytest.raises(ReplicaLost):
            await shared.get()
        assert await shared.get() == 2

    asyncio.run(work())


def test_one_who_goes_does_not_take_the_answer_from_the_others() -> None:
    async def work() -> None:
        shared = SharedAnswer(Asked(), kept_s=60)
        gone, stays = asyncio.create_task(shared.get()), asyncio.create_task(shared.get())
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == 1

    asyncio.run(work())
