"""What a controller is answered, whatever becomes of its session's events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from serving.gateway import controller_stream
from serving.gateway.controller_stream import ControllerStream
from serving.pb.longtake.v1 import sessions_pb2 as pb


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_stream, "MISSED_S", 0.05)
    monkeypatch.setattr(controller_stream, "HEARTBEAT_S", 0.02)


def accepted(command_id: str) -> pb.Receipt:
    return pb.Receipt(command_id=command_id, stage=pb.RECEIPT_STAGE_ACCEPTED)


def receipts(*, published: bool) -> list[pb.Receipt]:
    """Of a command whose receipt comes with the session's events, or was published where nobody read them."""

    async def session(done: asyncio.Event) -> AsyncGenerator[pb.Event]:
        await done.wait()
        if published:
            yield pb.Event(seq=1, receipt=accepted("one"))
        await asyncio.sleep(0.3)

    async def commands() -> AsyncGenerator[pb.Command]:
        yield pb.Command(id="one", pause=pb.Pause())
        await asyncio.Future()

    async def steer() -> list[pb.Receipt]:
        done, followed = asyncio.Event(), asyncio.Event()
        followed.set()

        async def apply(command: pb.Command) -> pb.Receipt:
            done.set()
            return accepted(command.id)

        stream = ControllerStream("a client", session(done), followed, apply)
        return [event.receipt async for event in stream.run(commands()) if event.HasField("receipt")]

    return asyncio.run(steer())


def test_a_command_is_answered_though_its_receipt_was_lost_between_two_streams() -> None:
    (answer,) = receipts(published=False)
    assert (answer.command_id, answer.stage) == ("one", pb.RECEIPT_STAGE_ACCEPTED)


def test_a_receipt_that_came_is_not_sent_again() -> None:
    (answer,) = receipts(published=True)
    assert not answer.repeated
