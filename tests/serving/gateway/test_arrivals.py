from __future__ import annotations

import asyncio

from serving.gateway.arrivals import ROUND_S, Arrivals


class Asked:
    """Notes what it is asked, and takes a moment to answer how often it was asked before."""

    def __init__(self) -> None:
        self.asked: list[int | None] = []

    async def __call__(self, from_frame: int | None) -> int:
        self.asked.append(from_frame)
        number = len(self.asked)
        await asyncio.sleep(0.02)
        return number


def test_all_who_come_at_once_are_asked_for_together_from_the_lowest_frame_on() -> None:
    async def work() -> None:
        arrivals = Arrivals(asked := Asked())
        answers = await asyncio.gather(*(arrivals.answer(frame) for frame in (None, 90, 33, None, 57)))
        assert (answers, asked.asked) == ([1] * 5, [33])

    asyncio.run(work())


def test_who_comes_while_a_question_is_out_has_the_answer_of_the_next_one() -> None:
    async def work() -> None:
        arrivals = Arrivals(asked := Asked())
        early = asyncio.create_task(arrivals.answer(9))
        while not asked.asked:
            await asyncio.sleep(0)
        late = [asyncio.create_task(arrivals.answer(None)) for _ in range(3)]
        assert await early == 1
        assert await asyncio.gather(*late) == [2, 2, 2]
        assert asked.asked == [9, None]

    asyncio.run(work())


def test_however_many_come_the_questions_are_few() -> None:
    async def work() -> None:
        arrivals = Arrivals(asked := Asked())
        loop = asyncio.get_running_loop()
        began, coming = loop.time(), []
        for _ in range(100):
            coming.append(asyncio.create_task(arrivals.answer(0)))
            await asyncio.sleep(0.002)
        await asyncio.gather(*coming)
        assert len(asked.asked) <= (loop.time() - began) / ROUND_S + 1

    asyncio.run(work())
