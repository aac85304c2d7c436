"""The connections of a client: to its server, and to those that sessions have moved to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc.aio

from serving.errors import InsecureToken, InvalidRequest, SessionMoved
from serving.hosts import host_of_target, is_loopback
from serving.pb.longtake.v1.sessions_pb2_grpc import SessionsStub
from serving.protocol.requests import require_text


def require_private(server: str, *, tls: bool, insecure: bool) -> None:
    """Raise InsecureToken where others could read a token on its way, unless it is said that they may."""
    if not (tls or insecure or is_loopback(host_of_target(server))):
        raise InsecureToken(
            f"the token would go to {server} in the clear; call a gateway with TLS (tls=True, --tls), or say "
            "that others may read it (insecure=True, --insecure)"
        )


def authorization(token: str) -> tuple[str, str]:
    """The metadata by which a caller is known. Raises InvalidRequest for a token that no metadata carries."""
    if not (token.isascii() and token.isprintable()):
        raise InvalidRequest("the token has characters that are not printable ASCII, which no metadata can carry")
    return "authorization", f"Bearer {token}"


def open_channel(server: str, options: Sequence[tuple[str, int | str]], *, tls: bool) -> grpc.aio.Channel:
    """A channel to a server, or with `tls` to a gateway in front of it.

    What is for this machine does not go round by way of a proxy that the environment names. Raises InvalidRequest
    for an address with half characters.
    """
    require_text("server", server)
    options = (*options, ("grpc.enable_http_proxy", 0 if is_loopback(host_of_target(server)) else 1))
    if tls:
        return grpc.aio.secure_channel(server, grpc.ssl_channel_credentials(), options)
    return grpc.aio.insecure_channel(server, options)


class Connection:
    """One channel, and the service behind it."""

    def __init__(self, server: str, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.channel = channel
        self.stub: Any = SessionsStub(channel)  # type: ignore[no-untyped-call]


class Connections:
    """Which connection leads to a session: the client's first, until it is told that the session has moved.

    `open_channel` connects to an address, anew each time. What is about no session goes by the name "".
    """

    def __init__(self, server: str, open_channel: Callable[[str], grpc.aio.Channel]) -> None:
        self._open_channel = open_channel
        self.first = Connection(server, open_channel(server))
        self._all = [self.first]
        self._moved: dict[str, Connection] = {}

    def of(self, session_id: str) -> Connection:
        """The connection to ask of a session over."""
        return self._moved.get(session_id, self.first)

    def follow(self, session_id: str, moved: SessionMoved) -> None:
        """A session, or where new ones are opened, has moved: there is a younger connection than that to it."""
        before = self.of(session_id)
        server = moved.server or before.server
        younger = self._all[self._all.index(before) + 1 :]
        found = next((connection for connection in younger if connection.server == server), None)
        if found is None:
            found = Connection(server, self._open_channel(server))
            self._all.append(found)
        self._moved[session_id] = found

    async def close(self) -> None:
        """End every stream, and all connections."""
        for connection in self._all:
            await connection.channel.close(None)
