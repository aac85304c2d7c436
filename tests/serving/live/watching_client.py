"""Watches a session over one connection of each kind named, says so once every one has had a chunk, and goes on.

A connection that ends, ends the client.

python -m tests.serving.live.watching_client HOST:PORT HOST:PORT SESSION KIND ...
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable

import grpc
from websockets.sync.client import connect

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc


def watch(grpc_address: str, page_address: str, session_id: str, got_chunk: Callable[[], None]) -> None:
    """As a spectator over gRPC."""
    with grpc.insecure_channel(grpc_address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
        _follow(stub.Watch(pb.WatchRequest(session_id=session_id)), got_chunk)


def interact(grpc_address: str, page_address: str, session_id: str, got_chunk: Callable[[], None]) -> None:
    """As the controller until the next one is; it says nothing more, so that a clock reports what is shown."""
    with grpc.insecure_channel(grpc_address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
        _follow(stub.Interact(iter([pb.Command(attach=pb.Attach(session_id=session_id))])), got_chunk)


def websocket(grpc_address: str, page_address: str, session_id: str, got_chunk: Callable[[], None]) -> None:
    """As a spectator over the WebSocket, where chunks are binary messages."""
    with connect(f"ws://{page_address}/ws?session={session_id}&watch=1") as socket:
        for message in socket:
            if isinstance(message, bytes):
                got_chunk()


KINDS = {"watch": watch, "interact": interact, "websocket": websocket}


def follow(kind: str, where: tuple[str, str, str], has_chunk: threading.Semaphore) -> None:
    """A connection of that kind to its end, which may only be that of the client."""
    try:
        KINDS[kind](*where, has_chunk.release)
    finally:
        os._exit(1)


def _follow(events: Iterable[pb.Event], got_chunk: Callable[[], None]) -> None:
    for event in events:
        if event.HasField("chunk"):
            got_chunk()


def main() -> None:
    """Until it is killed."""
    grpc_address, page_address, session_id, *kinds = sys.argv[1:]
    where = grpc_address, page_address, session_id
    each = [threading.Semaphore(0) for _ in kinds]
    for kind, has_chunk in zip(kinds, each, strict=True):
        threading.Thread(target=follow, args=(kind, where, has_chunk), daemon=True).start()
    for has_chunk in each:
        has_chunk.acquire()
    print("watching", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
