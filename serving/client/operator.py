"""What operators ask of a server, and servers of each other in their name: one connection for each call."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from serving.client.connections import Connection, authorization, open_channel
from serving.client.event_stream import refusal_of
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.requests import APPLICATION, APPLICATION_KEY

CALL_S = 60.0
"""The longest that an answer is waited for: a session is rebuilt in less."""

INFO_S = 10.0
"""The longest that it is waited for where nothing is done for it."""

MOST_MESSAGE_BYTES = 256 << 20

OPTIONS = (
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    # What is behind an address may change: no connection outlives its call, or is another call's.
    ("grpc.use_local_subchannel_pool", 1),
)


class OperatorCalls:
    """Calls the server at `address` with the operators' `token`.

    Every method raises the SessionError that the server answers, and ReplicaLost where it cannot be reached.
    """

    def __init__(self, address: str, token: str, *, tls: bool = False) -> None:
        self._address, self._token, self._tls = address, token, tls

    async def server_info(self) -> pb.GetServerInfoResponse:
        """Which server it is."""
        return await self._call("GetServerInfo", pb.GetServerInfoRequest(), INFO_S)

    async def evacuate(self, request: pb.EvacuateServerRequest) -> pb.EvacuateServerResponse:
        """Have all of its sessions go to another server."""
        return await self._call("EvacuateServer", request)

    async def offer(self, request: pb.OfferSessionRequest) -> None:
        """Ask whether it would take a session."""
        await self._call("OfferSession", request)

    async def send(self, request: pb.ImportSessionRequest) -> pb.Session:
        """Have a session go on there."""
        return await self._call("ImportSession", request)

    async def settle(self, request: pb.SettleTransferRequest) -> bool:
        """Whether a session goes on there by a transfer."""
        return bool((await self._call("SettleTransfer", request)).begun)

    async def _call(self, method: str, request: object, timeout_s: float = CALL_S) -> Any:
        metadata = ((APPLICATION_KEY, APPLICATION), authorization(self._token))
        async with open_channel(self._address, OPTIONS, tls=self._tls) as channel:
            stub = Connection(self._address, channel).stub
            try:
                return await getattr(stub, method)(request, metadata=metadata, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                raise refusal_of(error) from error
