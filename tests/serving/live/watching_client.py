"""Watches a session over so many connections, says so once every one has had a chunk, and goes on."""

from __future__ import annotations

import sys
import threading

import grpc

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc


def watch(address: str, session_id: str, has_chunk: threading.Semaphore) -> None:
    """Until the process ends."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
        for event in stub.Watch(pb.WatchRequest(session_id=session_id)):
            if event.HasField("chunk"):
                has_chunk.release()


def main() -> None:
    """The address, the session and the number of connections are the arguments."""
    address, session_id, connections = sys.argv[1], sys.argv[2], int(sys.argv[3])
    each = [threading.Semaphore(0) for _ in range(connections)]
    for has_chunk in each:
        threading.Thread(target=watch, args=(address, session_id, has_chunk), daemon=True).start()
    for has_chunk in each:
        has_chunk.acquire()
    print("watching", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
