"""Requests with one answer each, which are made again where the answer is lost and that does no harm."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from serving.client.backoff import Backoff
from serving.client.connections import Connections
from serving.client.event_stream import refusal_of
from serving.errors import ReplicaLost, SessionError, SessionMoved, SessionNotFound, TooManyRequests

TIMEOUT_S = 60.0
"""The longest that an answer to one request is waited for."""

LOST = grpc.StatusCode.UNAVAILABLE
"""What is answered where the answer itself is lost."""

MOVED_S = 0.1
"""How long after a session has moved it is asked for elsewhere."""

Metadata = tuple[tuple[str, str], ...]


class UnaryCalls:
    """Calls methods of the service, by their names in the protocol, in the name of `client_id`.

    Every method raises the SessionError that the server answers, and ReplicaLost where it cannot be reached or has
    lost the request on the way. What comes too often comes again when the server takes it, and what has moved to
    another server is asked for there.
    """

    def __init__(self, connections: Connections, metadata: Metadata, client_id: str, patience_s: float) -> None:
        self._connections, self._metadata = connections, metadata
        self._client_id, self._patience_s = client_id, patience_s
        self._reached = False

    async def call(self, method: str, request: object, timeout_s: float = TIMEOUT_S) -> Any:
        """The answer; one that says when to come back is waited for, for as long as `patience_s`."""
        now = asyncio.get_running_loop().time
        until = now() + self._patience_s
        while True:
            try:
                return await self._once(method, request, timeout_s)
            except TooManyRequests as refused:
                if now() + refused.retry_after_s > until:
                    raise
                await asyncio.sleep(refused.retry_after_s)
            except SessionMoved as moved:
                if now() + MOVED_S > until:
                    raise
                self._connections.follow(_session_of(request), moved)
                await asyncio.sleep(MOVED_S)

    async def ask(self, method: str, request: Any) -> Any:
        """The answer to what is to be done once, however often it has to be asked for within `patience_s`."""
        request.client_id, request.command_id = self._client_id, uuid.uuid4().hex
        return await self._insist(method, request)

    async def delete(self, method: str, request: object) -> None:
        """Have something removed, however often that has to be asked for."""
        try:
            await self.call(method, request)
        except ReplicaLost as lost:
            if not self._may_come_back(lost):
                raise
            with suppress(SessionNotFound):  # The answer was lost, and not the request.
                await self._insist(method, request)

    async def pages(self, method: str, request: Any) -> AsyncGenerator[Any]:
        """The answers to a request for a long list, one after the other."""
        while True:
            page = await self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def refusal(self, error: grpc.aio.AioRpcError) -> SessionError:
        """What the server means by an error."""
        refusal = refusal_of(error)
        if isinstance(refusal, ReplicaLost) and not isinstance(refusal, SessionMoved):
            server = self._connections.first.server
            return ReplicaLost(f"{server} does not answer as it should: {refusal}")
        return refusal

    async def _insist(self, method: str, request: object) -> Any:
        now = asyncio.get_running_loop().time
        until, backoff = now() + self._patience_s, Backoff(self._patience_s)
        while True:
            try:
                return await self.call(method, request)
            except ReplicaLost as lost:
                wait_s = backoff.wait_s(now()) if self._may_come_back(lost) else None
                if wait_s is None or now() + wait_s > until:
                    raise
            await asyncio.sleep(wait_s)

    def _may_come_back(self, lost: ReplicaLost) -> bool:
        """Whether to ask again. A server that was never there has perhaps another address."""
        cause = lost.__cause__
        return self._reached and isinstance(cause, grpc.aio.AioRpcError) and cause.code() is LOST

    async def _once(self, method: str, request: object, timeout_s: float) -> Any:
        connection = self._connections.of(_session_of(request))
        try:
            answer = await getattr(connection.stub, method)(request, metadata=self._metadata, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            state = connection.channel.get_state()
            self._reached = self._reached or state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE
            raise self.refusal(error) from error
        self._reached = True
        return answer


def _session_of(request: object) -> str:
    """The session that a request is about; empty where it is about none."""
    return str(getattr(request, "session_id", ""))
