"""Errors that nobody foresaw, outside the passes: each ends one session, and the others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from serving.errors import SessionFailed
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.messages import Role
from serving.replication.register import MemoryRegister
from serving.weights.loader import OpenedModel
from serving.worker.state.active_session import ActiveSession
from tests.serving.worker.bench import Bench, at_work, chunks, events, run, settled, spec, started

PLACES: dict[str, Callable[[Bench], tuple[Any, str]]] = {
    "prompts": lambda bench: (bench.denoiser._prompts, "begin"),
    "pictures": lambda bench: (bench.denoiser._loop, "_encode_more"),
    "loop": lambda bench: (bench.denoiser._loop._loops, "tell"),
    "cost of delivery": lambda bench: (bench.denoiser._loop._capacity.delivering, "expect"),
    "candidate": lambda bench: (bench.denoiser._loop, "_candidate"),
    "beginning": lambda bench: (bench.session("one").logic, "begin_block"),
    "trace": lambda bench: (bench.denoiser._loop, "_trace"),
    "announcement": lambda bench: (bench.denoiser._loop, "_announce"),
    "delivery": lambda bench: (bench.denoiser._loop, "_deliver"),
    "waiting": lambda bench: (bench.session("one"), "look_at_waiting"),
    "suspension": lambda bench: (bench.denoiser._suspension, "look"),
}
"""Where the work for one session is entered, and what is called there."""


def spoil(owner: Any, method: str, session: ActiveSession) -> None:
    """Have a method fail for one session, or at all where it is that session's own."""
    before = getattr(owner, method)
    own = owner is session or owner is session.logic

    def fail(*arguments: Any) -> Any:
        if own or any(given is session or given is session.config for given in arguments):
            raise RuntimeError("a bug")
        return before(*arguments)

    setattr(owner, method, fail)


def broken(*_: Any) -> Any:
    raise RuntimeError("a bug")


def replace(owner: Any, method: str) -> None:
    """Have a method fail."""
    setattr(owner, method, broken)


async def fails(bench: Bench, name: str) -> None:
    """The session ends, which its viewers are told, and gives all back."""
    with pytest.raises(SessionFailed, match="RuntimeError: a bug"):
        await events(bench, name, lambda _: False)
    await settled(lambda: name not in bench.ids)


@pytest.mark.parametrize("place", PLACES)
def test_an_error_in_the_work_for_a_session_ends_it_and_none_of_its_neighbours(
    pocket: OpenedModel, place: str
) -> None:
    async def fail() -> None:
        async with at_work(pocket) as bench:
            for name in ("one", "two"):
                await started(bench, spec(pocket, name))
                await chunks(bench, name, 21)
            spoil(*PLACES[place](bench), bench.session("one"))
            await fails(bench, "one")
            await chunks(bench, "two", 57)
            await settled(lambda: bench.open_runs() == 1 and len(bench.decoder.keys) == 1)

    run(fail())


def test_a_session_that_cannot_be_suspended_ends_and_is_not_tried_again(pocket: OpenedModel) -> None:
    async def fail() -> None:
        async with at_work(pocket, suspend_after_s=0.1) as bench:
            await started(bench, spec(pocket))
            spoil(bench.denoiser._suspension, "_put_aside", bench.session("one"))
            await bench.denoiser.command("one", pb.Command(pause=pb.Pause()))
            await fails(bench, "one")

    run(fail())


def test_a_stream_that_cannot_be_closed_ends_its_session_alone(pocket: OpenedModel) -> None:
    async def fail() -> None:
        async with at_work(pocket) as bench:
            await started(bench, spec(pocket))
            watching = bench.denoiser.subscribe("one", Role.VIEWER, 0, "stream")
            await anext(watching)
            session, opened = bench.session("one"), bench.denoiser._streams._open["stream"]
            replace(opened.subscriber, "finish")
            bench.denoiser._streams.close_expired(asyncio.get_running_loop().time() + 3600)
            await settled(lambda: session.closed)
            assert isinstance(session.failure, SessionFailed)

    run(fail())


def test_a_decoder_is_let_go_of_though_the_stream_cannot_be_closed(
    pocket: OpenedModel, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        async with at_work(pocket) as bench:
            await started(bench, spec(pocket))
            replace(bench.denoiser._engine, "close")
            await bench.close("one")
            await settled(lambda: bench.decoder.keys == ())
            await bench.denoiser._copies.settled()

    run(fail())
    assert "what a session held is not all free" in caplog.messages


class Failing(MemoryRegister):
    """Fails at the first question as nobody foresaw."""

    asked = 0

    async def latest(self, session_id: str) -> Any:
        self.asked += 1
        return broken() if self.asked == 1 else await super().latest(session_id)


@pytest.mark.parametrize("what", ["register", "farewell"])
def test_a_session_ends_though_what_is_to_be_said_of_it_fails(
    pocket: OpenedModel, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        async with at_work(pocket, register=Failing() if what == "register" else None) as bench:
            await started(bench, spec(pocket))
            session = bench.session("one")
            if what == "farewell":
                replace(session.audience, "publish_state")
            bench.denoiser._copies.end(session, None)
            await settled(lambda: session.closed and bench.decoder.keys == ())

    run(fail())
    assert [record.exc_info is not None for record in caplog.records if record.levelname != "INFO"] == [True]
