"""Measures what a spectator takes of a manager: CPU time per viewer and chunk, with own streams and shared ones.

    python -m benchmarks.spectators --sessions 100 --viewers 10

The sessions live on replicas in this process that send real chunks, encoded once before. Items of a stream are
pickled there and unpickled here, under a timeout, as a manager does with those that come over Ray; what Ray itself
takes for one is not in it. Nor is what every viewer costs whatever is done here: sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import pickle
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fastapi.websockets import WebSocketState
from starlette.datastructures import QueryParams

from benchmarks.measure.machine import RESULTS, Machine
from benchmarks.measure.timing import Samples
from engines.config.geometry import BlockLengths
from engines.config.presets import preset
from serving.auth import Caller
from serving.config import ServerConfig
from serving.gateway.ownership.replica_pool import Replicas
from serving.gateway.session_service import SessionService
from serving.media.encoder import ChunkEncoder
from serving.media.whole_file import write_whole
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent, write_chunk
from serving.replication.leases import RenewAnswer
from serving.replication.messages import Item, Joined, Role
from serving.replication.register import MemoryRegister, Owner
from serving.web.outbound import EventWriter
from serving.web.query import Address
from serving.web.segments import SegmentCache
from serving.web.websocket import Conversation, SharedStates

HEIGHT, WIDTH = 480, 832
CUE = pb.Cue(prompts=[pb.WeightedPrompt(text="a red balloon at noon")])
MARK = 0.2
"""The most that a viewer may cost, of what one cost with a stream of its own."""

WARM_UP = 24
"""Blocks until streams keep as much as they ever do."""

QUIET = 100
"""Nobody speaks between two blocks, and nobody is to be missed."""

Events = AsyncIterator[SerializedEvent]
Watch = Callable[[SessionService, str], Events]
Write = Callable[[SerializedEvent], object]


class BlockEvents(NamedTuple):
    """What a replica sends for a block: pickled items."""

    chunk: bytes
    progress: bytes
    applied: bytes


class FakeReplicas:
    """A ReplicaPool of one replica with every session, whose streams bring what `send` is given.

    A cue applies with each block of sessions that are `prompted`.
    """

    def __init__(self, *, prompted: bool) -> None:
        self._prompted = prompted
        self._streams: list[asyncio.Queue[bytes]] = []

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._streams)

    def send(self, block: BlockEvents) -> None:
        """A block of every session."""
        for stream in self._streams:
            for event in (block.chunk, block.progress, *([block.applied] if self._prompted else [])):
                stream.put_nowait(event)

    async def replicas(self) -> Replicas:
        """The one."""
        return Replicas(["all"])

    async def call(self, replica: str, method: str, *arguments: Any, timeout_s: float) -> Any:
        """Renewals, what a viewer is sent first, and how a session stands."""
        if method == "renew":
            return RenewAnswer(asyncio.get_running_loop().time(), (), ())
        if method == "describe":
            return pb.Event.FromString(_state(arguments[0])).state.SerializeToString()
        return Joined(1000, [_state(arguments[0])]) if method == "join_viewers" else None

    async def stream(self, replica: str, method: str, *arguments: Any, silence_s: float) -> AsyncGenerator[Item]:
        """The events of a session."""
        sent: asyncio.Queue[bytes] = asyncio.Queue()
        self._streams.append(sent)
        try:
            yield Item(_state(arguments[0]))
            while True:
                async with asyncio.timeout(silence_s * QUIET):
                    item: Item = pickle.loads(await sent.get())
                yield item
        finally:
            self._streams.remove(sent)


class Shared(NamedTuple):
    """What the viewers at a WebSocket share."""

    segments: SegmentCache
    states: SharedStates


class Audience(NamedTuple):
    """How many have come, and how many blocks they have been told of, each for itself."""

    begun: Count
    seen: Count


class Way(NamedTuple):
    """How a spectator is served, to the end; a cue applies with each block of sessions that are `prompted`."""

    serve: Callable[[SessionService, str, Shared, Audience], Coroutine[Any, Any, None]]
    prompted: bool = False


def _by_events(watch: Watch, writer: Callable[[Shared], Write]) -> Way:
    """A spectator whose events are written one after the other."""

    async def serve(service: SessionService, session_id: str, shared: Shared, audience: Audience) -> None:
        await _watch(watch(service, session_id), writer(shared), audience)

    return Way(serve)


def _own_stream(service: SessionService, session_id: str) -> Events:
    return service._relay.events(session_id, Role.VIEWER, None)


def _shared_stream(service: SessionService, session_id: str) -> Events:
    return service.watch(pb.WatchRequest(session_id=session_id), Caller(""))


def _own_bytes(_: Shared) -> Write:
    """As it was when every viewer had a stream: parsed, and serialised again."""
    return lambda sent: sent.event.SerializeToString()


def _shared_bytes(_: Shared) -> Write:
    return lambda sent: sent.SerializeToString()


def _nothing_shared() -> Shared:
    return Shared(SegmentCache(kept_bytes=0), SharedStates())


def _own_messages(_: Shared) -> Write:
    return _shared_messages(_nothing_shared())


def _shared_messages(shared: Shared) -> Write:
    writer = EventWriter(shared.segments)
    return lambda sent: writer.write(sent.event)


class _Socket:
    """Takes messages, and counts how often it is told how its session stands: first as it comes."""

    application_state = client_state = WebSocketState.CONNECTED

    def __init__(self, audience: Audience) -> None:
        self._audience = audience
        self._has_begun = False

    async def send_text(self, message: str) -> None:
        if message.startswith('{"type":"state"'):
            (self._audience.seen if self._has_begun else self._audience.begun).add()
            self._has_begun = True

    async def send_bytes(self, _: bytes) -> None:
        pass

    async def receive(self) -> dict[str, Any]:
        return await asyncio.Future()


class _OwnStreams:
    """Sessions as they were when every viewer had a stream."""

    def __init__(self, service: SessionService) -> None:
        self._service = service
        self.get = service.get

    def watch(self, request: pb.WatchRequest, _: Caller) -> Events:
        return _own_stream(self._service, request.session_id)


async def _converse(service: SessionService, session_id: str, shared: Shared, audience: Audience) -> None:
    await _conversation(service, session_id, shared, audience)


async def _converse_alone(service: SessionService, session_id: str, _: Shared, audience: Audience) -> None:
    await _conversation(_OwnStreams(service), session_id, _nothing_shared(), audience)


async def _conversation(sessions: Any, session_id: str, shared: Shared, audience: Audience) -> None:
    socket: Any = _Socket(audience)
    address = Address.of(QueryParams({"session": session_id, "watch": "1"}))
    await Conversation(socket, sessions, Caller(""), *shared).run(address)


FACES = {
    "gRPC": (_by_events(_own_stream, _own_bytes), _by_events(_shared_stream, _shared_bytes)),
    "WebSocket": (_by_events(_own_stream, _own_messages), _by_events(_shared_stream, _shared_messages)),
    "WebSocket, a prompt in each block": (Way(_converse_alone, prompted=True), Way(_converse, prompted=True)),
}
"""Of each face the way with a stream for every viewer, and the one with a stream for all of a session."""


@dataclass(frozen=True)
class Crowd:
    """So many viewers each watch so many sessions for some blocks, of which the first are not counted."""

    sessions: int
    viewers: int
    blocks: int

    @property
    def watchers(self) -> int:
        """Of all sessions."""
        return self.sessions * self.viewers


def encoded(blocks: int) -> list[BlockEvents]:
    """Blocks of a picture that moves, with some noise."""
    encoder, lengths, random = ChunkEncoder(HEIGHT, WIDTH), BlockLengths(), np.random.default_rng(0)
    ramp = np.linspace(0, 200, WIDTH + 16 * blocks, dtype=np.uint8)
    noise = random.integers(0, 40, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    found = []
    for block in range(blocks):
        first, end = lengths.pixel_frames(block), lengths.pixel_frames(block + 1)
        pictures = np.stack([ramp[None, at % 16 : at % 16 + WIDTH, None] + noise for at in range(first, end)])
        chunk = write_chunk(encoder.encode(block, first, pictures))
        progress = pb.Progress(current_start_frame=end, generated_fps=16.0, queued_blocks=1)
        found.append(
            BlockEvents(
                _pickled(pb.Event(seq=block + 1, chunk=chunk)),
                _pickled(pb.Event(seq=block + 1, progress=progress)),
                _pickled(pb.Event(seq=block + 1, applied=pb.AppliedCue(cue=CUE, frame=first))),
            )
        )
    return found


async def measure(crowd: Crowd, way: Way, sent: Sequence[BlockEvents]) -> Samples:
    """Milliseconds of CPU time per viewer and chunk, of each block."""
    pool, register = FakeReplicas(prompted=way.prompted), MemoryRegister()
    shared, audience = Shared(SegmentCache(), SharedStates()), Audience(Count(), Count())
    replicas: Any = pool
    names = [f"session {number}" for number in range(crowd.sessions)]
    for name in names:
        await register.create(name, 1, Owner("all", name, "manager"))
    with tempfile.TemporaryDirectory() as folder:
        config = ServerConfig(recordings=folder)
        service = SessionService(replicas, register, config, preset("pocket"), "manager")
        watching = [
            asyncio.create_task(way.serve(service, name, shared, audience))
            for name in names for _ in range(crowd.viewers)
        ]  # fmt: skip
        await audience.begun.reaches(crowd.watchers)
        wanted = [crowd.watchers * number for number in range(1, len(sent) + 1)]
        times = [await _round(pool, block, audience.seen, n) for block, n in zip(sent, wanted, strict=True)]
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await service.stop()
    return Samples(tuple(ms / crowd.watchers for ms in times[WARM_UP:]))


class Count:
    """Counts, and wakes who waits for a number."""

    def __init__(self) -> None:
        self._value = 0
        self._wanted = 0
        self._reached = asyncio.Event()

    def add(self) -> None:
        """One more."""
        self._value += 1
        if self._value == self._wanted:
            self._reached.set()

    async def reaches(self, wanted: int) -> None:
        """Wait until there are `wanted`."""
        self._wanted = wanted
        if self._value < wanted:
            self._reached.clear()
            await self._reached.wait()


async def _watch(events: Events, write: Write, audience: Audience) -> None:
    async with aclosing(events) as watched:  # type: ignore[type-var]
        async for sent in watched:
            write(sent)
            if sent.span is not None:
                continue
            if sent.event.HasField("progress"):
                audience.seen.add()
            elif sent.event.HasField("state"):
                audience.begun.add()


async def _round(pool: FakeReplicas, block: BlockEvents, seen: Count, wanted: int) -> float:
    began = time.process_time()
    pool.send(block)
    await seen.reaches(wanted)
    return (time.process_time() - began) * 1e3


def _pickled(event: pb.Event) -> bytes:
    sent = SerializedEvent.of(event)
    return pickle.dumps(Item(sent.data, sent.span))


def _state(name: str) -> bytes:
    options = pb.SessionOptions(height=HEIGHT, width=WIDTH)
    return pb.Event(state=pb.Session(id=name, options=options)).SerializeToString()


@dataclass(frozen=True)
class Cost:
    """Of a viewer and chunk, before and now."""

    before: Samples
    now: Samples

    @property
    def share(self) -> float:
        """Now, of before."""
        return self.now.median_ms / self.before.median_ms

    def as_json(self) -> dict[str, object]:
        """In microseconds, with every sample."""
        return {
            "us_before": 1e3 * self.before.median_ms,
            "us_now": 1e3 * self.now.median_ms,
            "share": self.share,
            "within_the_mark": self.share <= MARK,
            "samples_us_before": [round(1e3 * ms, 3) for ms in self.before.ms],
            "samples_us_now": [round(1e3 * ms, 3) for ms in self.now.ms],
        }


def compare(crowd: Crowd, sent: Sequence[BlockEvents]) -> dict[str, Cost]:
    """Both ways of each face, one after the other."""

    def cost(way: Way) -> Samples:
        gc.collect()
        return asyncio.run(measure(crowd, way, sent))

    return {face: Cost(*map(cost, ways)) for face, ways in FACES.items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spectators", description=__doc__)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--viewers", type=int, default=10, help="of each session")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE", default=RESULTS / "spectators_cpu.json")
    options = parser.parse_args()
    crowd = Crowd(options.sessions, options.viewers, options.blocks)
    machine, sent = Machine.here(torch.device("cpu")), encoded(WARM_UP + crowd.blocks)
    costs = compare(crowd, sent)
    size = sum(len(block.chunk) for block in sent) / len(sent)
    for face, cost in costs.items():
        kept = "within" if cost.share <= MARK else "above"
        print(
            f"{face}: {1e3 * cost.before.median_ms:.1f} us per viewer and chunk with a stream for each, "
            f"{1e3 * cost.now.median_ms:.1f} us with one for all: {cost.share:.2f}, {kept} the mark of {MARK}"
        )
    facts = {"machine": asdict(machine), **asdict(crowd), "chunk_bytes": round(size), "mark": MARK}
    faces = {face: cost.as_json() for face, cost in costs.items()}
    write_whole(options.json, json.dumps(facts | {"faces": faces}, indent=1) + "\n")
    print(f"{machine}\n{options.json}")


if __name__ == "__main__":
    main()
