"""A client that begins to watch a session and reads nothing more, until whoever started it kills it.

python -m benchmarks.soak.unread_client grpc HOST:PORT SESSION
python -m benchmarks.soak.unread_client page http://HOST:PORT/ SESSION
"""

from __future__ import annotations

import sys
import time

import grpc
from websockets.sync.client import connect

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc

FOR_EVER_S = 3600


def watch_grpc(address: str, session_id: str) -> None:
    """Read one event."""
    channel = grpc.insecure_channel(address)
    stub = sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
    next(stub.Watch(pb.WatchRequest(session_id=session_id)))
    _wait()


def watch_page(page: str, session_id: str) -> None:
    """Read one message."""
    address = page.rstrip("/").replace("http", "ws", 1)
    with connect(f"{address}/ws?session={session_id}&watch=1") as socket:
        socket.recv()
        _wait()


def _wait() -> None:
    print("watching", flush=True)
    time.sleep(FOR_EVER_S)


if __name__ == "__main__":
    kind, where, session = sys.argv[1:]
    (watch_grpc if kind == "grpc" else watch_page)(where, session)
