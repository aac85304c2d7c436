"""How fast the HTTP proxy reads what each connection sends.

The proxy keeps all that it has read until a session manager takes it, in memory that is everybody's. What it does
not read stays with its sender, whose own sending comes to a halt.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

BYTES_A_SECOND = 16 << 20

BURST_S = 1.0
"""What is sent after a pause is read at once, as much as could have come in this time."""

TEXT_COST = 16
"""What a character counts: JSON is read, and its texts are cleaned, where bytes are only passed on."""

MESSAGE_BYTES = 4 << 10
"""What the smallest message counts: to take it from process to process costs that."""


class Inflow:
    """Lets an application have what a connection sends at a bounded rate."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; what comes, not before its time."""
        rate = InflowRate()

        async def receive_in_time() -> Message:
            await asyncio.sleep(rate.wait_s(_now()))
            message = await receive()
            rate.count(_nbytes(message), _now())
            return message

        await self._app(scope, receive_in_time, send)


class InflowRate:
    """Says how long to wait before more is read, on a clock that is monotonic."""

    def __init__(self) -> None:
        self._paid_until = 0.0

    def count(self, nbytes: int, now: float) -> None:
        """So much has been read."""
        cost_s = (nbytes + MESSAGE_BYTES) / BYTES_A_SECOND
        self._paid_until = max(self._paid_until, now - BURST_S) + cost_s

    def wait_s(self, now: float) -> float:
        """Seconds until the next message is read."""
        return max(0.0, self._paid_until - now)


def _nbytes(message: Message) -> int:
    """Of its content, or what that counts as."""
    texts = TEXT_COST * len(message.get("text") or "")
    return texts + sum(len(message.get(field) or b"") for field in ("bytes", "body"))


def _now() -> float:
    return asyncio.get_running_loop().time()
