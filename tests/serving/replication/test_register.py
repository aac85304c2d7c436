"""Registers agree on one owner for each epoch, and never on one after the end."""

from __future__ import annotations

import asyncio

import pytest

from serving.replication.register import (
    Ended,
    EpochRecord,
    MemoryRegister,
    Owner,
    Record,
    decode_record,
    encode_record,
    end_session,
)

FIRST = Owner("r1", "a1", "m1")
SECOND = Owner("r2", "a2", "m1")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_to_create_an_epoch_wins() -> None:
    async def race() -> list[bool]:
        register = MemoryRegister()
        return [await register.create("s", 1, FIRST), await register.create("s", 1, SECOND)]

    assert asyncio.run(race()) == [True, False]


def test_a_repeated_call_finds_what_it_created() -> None:
    async def repeat() -> bool:
        register = MemoryRegister()
        await register.create("s", 1, FIRST)
        await register.create("s", 2, SECOND)
        return await register.create("s", 1, FIRST)

    assert asyncio.run(repeat())


def test_an_epoch_cannot_be_skipped() -> None:
    assert not asyncio.run(MemoryRegister().create("s", 2, FIRST))


def test_the_latest_epoch_is_told() -> None:
    async def latest() -> list[EpochRecord | None]:
        register = MemoryRegister()
        await register.create("s", 1, FIRST)
        await register.create("s", 2, SECOND)
        return [await register.latest("s"), await register.latest("other")]

    assert asyncio.run(latest()) == [EpochRecord(2, SECOND), None]


def test_nothing_follows_an_end_before_or_after_it_is_forgotten() -> None:
    async def follow() -> list[object]:
        clock = Clock()
        register = MemoryRegister(clock=clock)
        await register.create("s", 1, FIRST)
        await end_session(register, "s", "deleted")
        early = await register.create("s", 3, SECOND)
        clock.now = 61.0
        await register.forget_ended()
        return [early, await register.latest("s"), await register.create("s", 2, SECOND)]

    assert asyncio.run(follow()) == [False, None, False]


def test_an_end_is_remembered_for_a_minute() -> None:
    async def end() -> EpochRecord | None:
        clock = Clock()
        register = MemoryRegister(clock=clock)
        await register.create("s", 1, FIRST)
        await end_session(register, "s", "deleted")
        clock.now = 59.0
        await register.forget_ended()
        return await register.latest("s")

    assert asyncio.run(end()) == EpochRecord(2, Ended())


def test_an_end_is_committed_after_a_takeover_that_came_first() -> None:
    class Overtaken(MemoryRegister):
        async def latest(self, session_id: str) -> EpochRecord | None:
            top = await super().latest(session_id)
            if top is not None and top.epoch == 1:
                await self.create(session_id, 2, SECOND)
            return top

    async def end() -> EpochRecord | None:
        register = Overtaken()
        await register.create("s", 1, FIRST)
        await end_session(register, "s", "deleted")
        return await register.latest("s")

    assert asyncio.run(end()) == EpochRecord(3, Ended())


def test_ending_a_session_that_is_over_or_never_was_does_nothing() -> None:
    async def end() -> list[EpochRecord | None]:
        register = MemoryRegister()
        await register.create("s", 1, FIRST)
        for session in ("s", "s", "other"):
            await end_session(register, session, "deleted")
        return [await register.latest("s"), await register.latest("other")]

    assert asyncio.run(end()) == [EpochRecord(2, Ended()), None]


@pytest.mark.parametrize("record", [FIRST, Ended(), Ended("the replica is gone")], ids=["owner", "ended", "lost"])
def test_a_record_survives_encoding(record: Record) -> None:
    assert decode_record(encode_record(record)) == record
