"""What a connection sends is read no faster than its share."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.web.inflow import BURST_S, BYTES_A_SECOND, MESSAGE_BYTES, TEXT_COST, Inflow, InflowRate

MESSAGE = BYTES_A_SECOND // 4 - MESSAGE_BYTES
"""Of which four a second are read."""


def test_a_burst_is_read_at_once_and_what_follows_at_the_rate() -> None:
    rate = InflowRate()
    now = 100.0
    waits = []
    for _ in range(8):
        waits.append(rate.wait_s(now))
        now += waits[-1]
        rate.count(MESSAGE, now)
    assert waits == pytest.approx([0] * int(4 * BURST_S) + [0] + [0.25] * 3)


def test_a_pause_earns_no_more_than_a_burst() -> None:
    rate = InflowRate()
    for _ in range(8):
        rate.count(MESSAGE, 100.0)
    assert rate.wait_s(100.0) == pytest.approx(1)
    for _ in range(5):
        rate.count(MESSAGE, 900.0)
    assert rate.wait_s(900.0) == pytest.approx(0.25)


def test_small_messages_are_not_for_nothing() -> None:
    rate = InflowRate()
    for _ in range(3 * BYTES_A_SECOND // MESSAGE_BYTES):
        rate.count(0, 100.0)
    assert rate.wait_s(100.0) == pytest.approx(2)


@pytest.mark.parametrize("field", ["bytes", "text", "body"])
def test_the_proxy_reads_as_slowly_as_that_whatever_is_sent(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    waited: list[float] = []
    read: list[Message] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async def receive() -> Message:
        return {
            "type": "one",
            field: b"x" * BYTES_A_SECOND if field != "text" else "x" * (BYTES_A_SECOND // TEXT_COST),
        }

    async def send(message: Message) -> None:
        raise AssertionError("nothing is answered")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        read.extend([await receive() for _ in range(3)])

    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(Inflow(app)({"type": "websocket"}, receive, send))
    assert len(read) == 3
    assert [seconds > 0.5 for seconds in waited] == [False, False, True]
