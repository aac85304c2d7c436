"""What the tests of a running server say to it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, suppress

import av
import grpc
import numpy as np
import psutil

from serving.client.aio import AsyncClient
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc

NOON = "a red balloon drifting steadily to the right over rolling hills at noon under a clear sky"
NIGHT = "a red balloon drifting steadily to the right over rolling hills at night under a clear sky"
SNOW = "a blue sailboat swaying over the sea at dusk in falling snow"

METHODS = list(pb.DESCRIPTOR.services_by_name["Sessions"].methods)
"""Of the service, as the protocol describes them."""


def settles(is_so: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether something is so, if not at once."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if is_so():
            return True
        time.sleep(0.2)
    return False


def children(holds: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """The processes below this one of which something holds; any may end meanwhile."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if holds(process):
                found.append(process)
    return found


def code_of(call: Callable[[], object]) -> grpc.StatusCode | None:
    """How a call is refused; None if it is not."""
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


def described(stub: sessions_pb2_grpc.SessionsStub, session: pb.Session) -> pb.Session:
    found: pb.Session = stub.GetSession(pb.GetSessionRequest(session_id=session.id))
    return found


def cue(text: str, frame: int | None = None) -> pb.Cue:
    return pb.Cue(frame=frame, prompts=[pb.WeightedPrompt(text=text)])


def create(
    stub: sessions_pb2_grpc.SessionsStub, *cues: pb.Cue, seed: int = 7, fps: int = 0, ahead: int = 4
) -> pb.Session:
    options = pb.SessionOptions(seed=seed, fps=fps, ahead=ahead)
    session: pb.Session = stub.CreateSession(
        pb.CreateSessionRequest(options=options, cues=cues or (cue(NOON, 0),))
    )
    return session


def start(stub: sessions_pb2_grpc.SessionsStub, session: pb.Session) -> None:
    stub.Start(pb.StartRequest(session_id=session.id))


def playing(stub: sessions_pb2_grpc.SessionsStub, fps: int = 16) -> pb.Session:
    """A session at its pace, which has started."""
    session = create(stub, fps=fps, ahead=1)
    start(stub, session)
    return session


async def seen_by_client(address: str, session: pb.Session, end: int, hurt: Callable[[], None]) -> list[pb.Event]:
    """The events that a client sees up to frame `end`, under which something happens once 45 frames have come."""
    events: list[pb.Event] = []
    async with AsyncClient(address) as client, aclosing(client.watch(session.id, 0)) as stream:
        async for event in stream:
            events.append(event)
            if event.HasField("chunk") and event.chunk.first_frame == 33:
                hurt()
            if event.HasField("chunk") and event.chunk.first_frame + len(event.chunk.units) >= end:
                return events
    raise AssertionError("the stream ended")


def frames(events: Iterable[pb.Event]) -> list[int]:
    return frames_of(event.chunk for event in events if event.HasField("chunk"))


def watch(
    stub: sessions_pb2_grpc.SessionsStub, session: pb.Session, from_frame: int | None = 0
) -> Iterator[pb.Event]:
    events: Iterator[pb.Event] = stub.Watch(
        pb.WatchRequest(session_id=session.id, from_frame=from_frame), timeout=60
    )
    return events


def chunks(events: Iterable[pb.Event], end_frame: int) -> list[pb.Chunk]:
    """The chunks that come, until frame `end_frame` has been reached."""
    found = []
    for event in events:
        if event.HasField("chunk"):
            found.append(event.chunk)
            if event.chunk.first_frame + len(event.chunk.units) >= end_frame:
                return found
    raise AssertionError(f"the stream ended before frame {end_frame}: {[c.first_frame for c in found]}")


def frames_of(found: Iterable[pb.Chunk]) -> list[int]:
    return [unit.frame for chunk in found for unit in chunk.units]


def pictures(found: Iterable[pb.Chunk]) -> np.ndarray:
    """The decoded pictures of chunks, [frames, height, width, 3] uint8."""
    data = b"".join(unit.data for chunk in found for unit in chunk.units)
    with av.open(io.BytesIO(data), "r", format="h264") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
