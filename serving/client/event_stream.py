"""A session's events at a client, over as many calls as it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from serving.client.backoff import Backoff
from serving.errors import FrameOutOfRange, ReplicaLost, SessionError, SessionMoved, TooManyRequests
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.status import error_of, read_error, reason_in, retry_after_in, retry_after_of, server_in
from serving.protocol.stream_cursor import StreamCursor, Verdict

LOST_AFTER_S = 5.0
"""After so long without an event a stream is lost: where nothing happens, a heartbeat comes every second."""

Describe = Callable[[], Awaitable[pb.Session]]
Moved = Callable[[SessionMoved], None]
Open = Callable[[int | None], Awaitable[Any]]


def refusal_of(error: grpc.aio.AioRpcError) -> SessionError:
    """What the server means by an error."""
    metadata: Any = error.trailing_metadata()
    words, reason = error.details() or error.code().name, reason_in(metadata)
    return error_of(error.code(), words, reason, retry_after_in(metadata), server_in(metadata))


class EventStream:
    """The events that calls made by `open_call` bring, each of which is told from which frame on.

    A call that breaks is made again, for up to `patience_s` without a frame; so is one that ends though the
    session does not, and one in which an event is missing, since each begins with how the session stands.
    `describe` asks for that too, and `moved` is told where the next call is to go. Raises what the server answers.
    """

    def __init__(
        self, open_call: Open, describe: Describe, moved: Moved, from_frame: int | None, patience_s: float
    ) -> None:
        self._open, self._moved = open_call, moved
        self._describe = describe
        self._viewing = StreamCursor(from_frame)
        self._patience = Backoff(patience_s)
        self._ended = False

    async def events(self) -> AsyncGenerator[pb.Event]:
        """All that is news, until the session ends."""
        while not self._ended:
            try:
                async with aclosing(self._once()) as events:
                    async for event in events:
                        yield event
            except (ReplicaLost, TooManyRequests) as lost:
                if isinstance(lost, SessionMoved):
                    self._moved(lost)
                await self._wait(lost)

    async def _once(self) -> AsyncGenerator[pb.Event]:
        """What one call brings; instead of frames that are not kept any more, a gap."""
        try:
            async with aclosing(self._called()) as events:
                async for event in events:
                    yield event
        except FrameOutOfRange:
            if self._viewing.take is None:
                raise
            if gap := self._viewing.skip_to(await self._describe()):
                yield gap

    async def _called(self) -> AsyncGenerator[pb.Event]:
        call = await self._open(self._viewing.reopen())
        empty = True
        try:
            async for event in self._read(call):
                empty = False
                match self._viewing.judge(event):
                    case Verdict.HOLE:
                        raise ReplicaLost(f"events are missing before one of frame {self._viewing.next_frame}")
                    case Verdict.NEWS:
                        yield self._noted(event)
        finally:
            call.cancel()
        if empty:
            raise ReplicaLost("the stream ended before it began")

    def _noted(self, event: pb.Event) -> pb.Event:
        if event.HasField("error"):
            raise read_error(event.error)
        if event.HasField("chunk"):
            self._patience.satisfied()
        self._ended = self._ended or event.state.state == pb.SESSION_STATE_ENDED
        return event

    async def _read(self, call: Any) -> AsyncIterator[pb.Event]:
        """Events of `call`. A read that is cancelled would cancel the call."""
        while True:
            reading = asyncio.ensure_future(call.read())
            try:
                if not (await asyncio.wait({reading}, timeout=LOST_AFTER_S))[0]:
                    raise ReplicaLost(f"nothing came for {LOST_AFTER_S:g} s, not even a heartbeat")
                event = reading.result()
            except grpc.aio.AioRpcError as error:
                raise refusal_of(error) from error
            finally:
                reading.cancel()
            if event is grpc.aio.EOF:  # type: ignore[attr-defined]
                return
            yield event

    async def _wait(self, lost: ReplicaLost | TooManyRequests) -> None:
        wait_s = self._patience.wait_s(asyncio.get_running_loop().time())
        if wait_s is None:
            seconds = self._patience.seconds
            raise ReplicaLost(
                f"the stream is lost, and was not there again within {seconds:g} s: {lost}"
            ) from lost
        await asyncio.sleep(max(wait_s, retry_after_of(lost) or 0.0))
