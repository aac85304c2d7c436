"""The streams of a manager that is being taken away: they end, and their clients come again elsewhere."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent

SPREAD_S = 2.0
"""Over which streams end: all their clients at once would be slow to be served by the others."""


class StreamHandoff:
    """Passes streams on for as long as this process stays."""

    def __init__(self) -> None:
        self._began_at: float | None = None

    def begin(self) -> None:
        """This process does not stay, and others are there. To begin again does nothing."""
        self._began_at = self._began_at or _now()

    async def while_here(self, events: AsyncGenerator[SerializedEvent]) -> AsyncGenerator[SerializedEvent]:
        """The same events, of which at least one comes each second; the last may say to come again."""
        spread_s = random.uniform(0, SPREAD_S)
        async with aclosing(events):
            async for event in events:
                yield event
                if self._began_at is not None and _now() - self._began_at >= spread_s:
                    yield _moved()
                    return


def _moved() -> SerializedEvent:
    message = "the process that sends this stream is being taken away; watch again from the next frame"
    return SerializedEvent.of(pb.Event(end=pb.StreamEnd(reason=pb.STREAM_END_REASON_MOVED, message=message)))


def _now() -> float:
    return asyncio.get_running_loop().time()
