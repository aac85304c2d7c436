from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from serving import app
from serving.config import ServerConfig
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc

SLOTS = 3


class Server(NamedTuple):
    address: str
    config: ServerConfig
    stub: sessions_pb2_grpc.SessionsStub


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Ray cluster that serves the pocket model, for all tests of this folder."""
    recordings: Path = tmp_path_factory.mktemp("recordings")
    config = ServerConfig(
        slots=SLOTS, grpc_port=free_port(), http_port=free_port(), recordings=str(recordings), lease_s=20
    )
    app.start(config)
    address = f"127.0.0.1:{config.grpc_port}"
    with grpc.insecure_channel(address) as channel:
        yield Server(address, config, sessions_pb2_grpc.SessionsStub(channel))  # type: ignore[no-untyped-call]
    app.stop()


@pytest.fixture
def stub(server: Server) -> Iterator[sessions_pb2_grpc.SessionsStub]:
    """The server without a session, before and after."""
    yield server.stub
    for session in server.stub.ListSessions(pb.ListSessionsRequest()).sessions:
        server.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))
