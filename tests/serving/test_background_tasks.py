"""Tasks that nobody waits for."""

from __future__ import annotations

import asyncio
import logging

import pytest

from serving.background_tasks import BackgroundTasks


async def fail() -> None:
    raise ValueError("not foreseen")


async def last() -> None:
    await asyncio.sleep(3600)


def test_an_error_that_ends_a_task_is_logged_once_with_what_it_did(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        tasks = BackgroundTasks()
        await asyncio.wait([tasks.start("tidying", fail(), session="one")])
        tasks.check()

    with caplog.at_level(logging.ERROR):
        asyncio.run(work())
    (record,) = caplog.records
    assert (record.__dict__["what"], record.__dict__["session"]) == ("tidying", "one")
    assert "not foreseen" in caplog.text


def test_without_a_vital_task_its_owner_is_not_well() -> None:
    async def work() -> None:
        tasks = BackgroundTasks()
        tasks.start("watching", last(), vital=True)
        renewing = tasks.start("renewing", fail(), vital=True)
        tasks.check()
        await asyncio.wait([renewing])
        with pytest.raises(RuntimeError, match="renewing has ended: ValueError"):
            tasks.check()

    asyncio.run(work())


def test_what_is_cancelled_has_not_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        tasks = BackgroundTasks()
        task = tasks.start("watching", last(), vital=True)
        await asyncio.sleep(0)
        await tasks.stop()
        assert task.cancelled()
        tasks.check()

    asyncio.run(work())
    assert not caplog.records
