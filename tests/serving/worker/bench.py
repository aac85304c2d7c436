"""A denoiser in one event loop, with the pocket model at its smallest size, a decoder beside it, and a manager."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from typing_extensions import override

from engines.device.host_copy import HostCopier
from engines.device.side_stream import SideStream
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt
from engines.vae.frame_decoder import FrameDecoder
from engines.video.builder import build_input_encoder
from engines.video.generator import VideoGenerator
from engines.video.stream_engine import StreamEngine
from serving.deployments.telemetry.metrics import DenoiserMetrics
from serving.media.encoder import ChunkEncoder
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.stages import LocalDecoder, LocalTextEncoder
from serving.pipeline.video_decoder import VideoDecoder
from serving.replication.contacts import Contacts
from serving.replication.leases import CopyLease, LeaseConfig
from serving.replication.messages import FeedItem, Prepared, ReplicationDelta, ResumeState, Role, SessionSpec
from serving.replication.register import Ended, MemoryRegister, Owner, Register
from serving.replication.standby import StandbyCopy
from serving.session.pacing import Pace
from serving.timeline.cue import Blend, Cue
from serving.tracing.tracer import UNTRACED, Tracer
from serving.weights.loader import OpenedModel
from serving.worker.capacity.capacity import Capacity, Load
from serving.worker.denoiser import Denoiser
from serving.worker.pictures.input_stage import InputStage
from serving.worker.state.active_session import ActiveSession
from tests.support.generators import denoiser_for

NOON, NIGHT, SNOW = "a red balloon at noon", "a red balloon at night", "a blue sailboat in falling snow"
SPOILT = "a prompt whose embedding does not fit"

MANAGER = "manager"

MAX_BYTES = 64 << 20
"""Of a snapshot."""


class SpoilingText(LocalTextEncoder):
    """A text encoder that gets one text wrong."""

    async def encode(self, text: str) -> Prompt:
        prompt = await super().encode(text)
        return Prompt(text, torch.zeros(3, 5)) if text == SPOILT else prompt


@dataclass
class Bench:
    """A denoiser at work, its decoder, and a manager that renews what was opened. Attempts are session ids."""

    denoiser: Denoiser
    generator: Generator
    decoder: VideoDecoder
    register: Register
    run_tokens: int
    leased: dict[str, CopyLease] = field(default_factory=dict)
    contacts: Contacts = field(default_factory=Contacts)
    streams: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the sessions that are here."""
        return tuple(session.id for session in self.denoiser._copies.all)

    def open_runs(self) -> int:
        windows = self.generator.cache.windows
        return (windows.tokens - windows.free) // self.run_tokens

    def session(self, name: str) -> ActiveSession:
        return self.denoiser._copies.get(name)

    async def open(
        self, what: SessionSpec, cues: Sequence[Cue] = (), resume: ResumeState | None = None
    ) -> pb.Session:
        """A session with a lease."""
        return await self._grant(await self.denoiser.prepare(what.session_id, what, cues, resume))

    async def fork(self, name: str, frame: int | None) -> pb.Session:
        fork = f"{name} fork {next(self.streams)}"
        return await self._grant(await self.denoiser.fork(name, fork, fork, "anna", frame))

    async def close(self, name: str) -> None:
        """Delete a session."""
        lease = self.leased.pop(name)
        await self.register.create(lease.session_id, lease.epoch + 1, Ended())
        self.denoiser.session_ended(name, lease.epoch + 1)

    async def _grant(self, made: Prepared) -> pb.Session:
        session = pb.Session.FromString(made.description)
        await self.register.create(session.id, 1, Owner(made.replica, made.attempt, MANAGER))
        self.contacts.heard("here", made.reading, asyncio.get_running_loop().time())
        self.leased[session.id] = CopyLease(session.id, made.attempt, 1)
        self.renew()
        return session

    def renew(self) -> None:
        """Renew what was opened, and every stream."""
        streams = list(self.denoiser._copies.leases.streams._alive_at)
        answer = self.denoiser.renew(self.contacts.request(MANAGER, "here", self.leased.values(), streams))
        self.contacts.heard("here", answer.reading, asyncio.get_running_loop().time())

    async def keep_renewing(self) -> None:
        while True:
            self.renew()
            await asyncio.sleep(0.2)


class UnhurriedCapacity(Capacity):
    """Has time for every session, however busy the machine is that runs the tests."""

    @override
    def require_time(self, newcomer: Load, present: Iterable[Load], now: float) -> None:
        """It has."""

    @override
    def more(self, present: Iterable[Load], most: int, now: float) -> int:
        return most


def one_thread() -> ThreadPoolExecutor:
    """Computes by itself from the first product on: several threads add up in another order."""
    return ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))


@asynccontextmanager
async def at_work(
    pocket: OpenedModel,
    slots: int = 2,
    batch: int = 1,
    *,
    register: Register | None = None,
    leases: LeaseConfig | None = None,
    renews: bool = True,
    replica: str = "here",
    capacity: Capacity | None = None,
    provenance: pb.Provenance | None = None,
    tracer: Tracer = UNTRACED,
    **options: Any,
) -> AsyncIterator[Bench]:
    codec, networks = pocket.model.vae, pocket.model.config
    kept = codec.decoder_receptive_field + 2 * pocket.model.config.stream.block_frames
    generator = denoiser_for(pocket.model.transformer, kept_frames=kept, batch=batch)
    cpu = torch.device("cpu")
    decoder = VideoDecoder(
        FrameDecoder(codec, SideStream(cpu), HostCopier(cpu)), ChunkEncoder, 2 * slots, tracer=tracer
    )
    text = SpoilingText(pocket.prompts, one_thread())
    register = register or MemoryRegister()
    engine = StreamEngine(generator, VideoGenerator(generator))
    pictures = InputStage(build_input_encoder(pocket.model), one_thread())
    denoiser = Denoiser(
        engine, text, LocalDecoder(decoder, one_thread()), one_thread(),
        slots=slots, replica=replica, metrics=DenoiserMetrics(), register=register, leases=leases,
        capacity=capacity or UnhurriedCapacity(networks.transformer, networks.stream),
        provenance=provenance, tracer=tracer, pictures=pictures,
        **options,
    )  # fmt: skip
    trial = engine.open(spec(pocket).stream)
    run_tokens = trial.lanes[0].window.tokens
    engine.close(trial)
    denoiser.start()
    bench = Bench(denoiser, generator, decoder, register, run_tokens)
    renewing = asyncio.create_task(bench.keep_renewing()) if renews else None
    try:
        yield bench
        denoiser.check()
    finally:
        if renewing is not None:
            renewing.cancel()
        await denoiser.stop()


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(bounded())


def spec(pocket: OpenedModel, name: str = "one", seed: int = 7, **pace: float) -> SessionSpec:
    stream = replace(pocket.model.config.stream, seed=seed, height=32, width=48)
    return SessionSpec(name, "anna", "pocket", stream, Pace(**{"fps": 0, **pace}), 0.0)  # type: ignore[arg-type]


def cues(*texts: str) -> tuple[Cue, ...]:
    """One every two blocks."""
    return tuple(Cue(24 * number, Blend.of(text)) for number, text in enumerate(texts))


def start() -> pb.Command:
    return pb.Command(id="start", start=pb.Start())


async def started(bench: Bench, what: SessionSpec, *prompts: str) -> str:
    await bench.open(what, cues(*prompts or (NOON,)))
    await bench.denoiser.command(what.session_id, start())
    return what.session_id


async def events(
    bench: Bench, name: str, until: Callable[[pb.Event], bool], from_frame: int | None = 0
) -> list[pb.Event]:
    """What a viewer is sent, up to the first event for which `until` holds."""
    found = []
    stream = f"events {next(bench.streams)}"
    async with aclosing(bench.denoiser.subscribe(name, Role.VIEWER, from_frame, stream)) as items:
        async for item in items:
            if item.event is not None:
                found.append(pb.Event.FromString(item.event))
                if until(found[-1]):
                    break
    return found


async def chunks(bench: Bench, name: str, end_frame: int, from_frame: int = 0) -> list[pb.Chunk]:
    found = await events(bench, name, lambda e: e.chunk.first_frame + len(e.chunk.units) >= end_frame, from_frame)
    return [event.chunk for event in found if event.HasField("chunk")]


async def settled(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


async def next_delta(items: AsyncIterator[FeedItem]) -> ReplicationDelta:
    """Heartbeats before it are left out."""
    async for item in items:
        if item.delta is not None:
            return item.delta
    raise AssertionError("the standby was let go")


async def fed(bench: Bench, name: str, end_frame: int) -> StandbyCopy:
    """What a standby knows once it has the chunk that ends with `end_frame`."""
    copy = StandbyCopy()
    async with aclosing(bench.denoiser.feed(name, MANAGER)) as items:
        async for item in items:
            if item.delta is not None:
                copy.apply(item.delta)
                if any(chunk.end_frame >= end_frame for chunk in item.delta.chunks):
                    return copy
    raise AssertionError("the standby was let go")


def prompts_in_every_block(blocks: int) -> tuple[Cue, ...]:
    frames = [0, *range(9, 12 * blocks - 3, 12)]
    return tuple(Cue(frame, Blend.of(NOON if n % 2 else NIGHT)) for n, frame in enumerate(frames))
