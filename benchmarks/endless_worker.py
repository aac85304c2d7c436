"""Shows that a replica's session has no end: time, memory and files of a block with a prompt, early and late.

    python -m benchmarks.endless_worker --blocks 115200

The denoiser of a server, with a generator, a text encoder and a decoder that make nothing; a manager renews its
lease and keeps a standby copy, and a controller says another prompt with every block that comes.
"""

from __future__ import annotations

import asyncio
import gc
import pickle
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.endless import memory_gauge
from benchmarks.endless_session import WINDOW, BlockSamples, Values, blocks_asked, compared, keep, prompt
from benchmarks.measure.empty_stages import CPU, EmptyDecoder, EmptyTextEncoder, Uncounted, empty_generator
from benchmarks.measure.machine import Machine
from engines.config.geometry import BlockLengths
from engines.config.presets import preset
from engines.video.stream_engine import StreamEngine
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import write_applied, write_cue
from serving.replication.contacts import Contacts
from serving.replication.leases import CopyLease, LeaseConfig
from serving.replication.messages import Item, Prepared, Role, SessionSpec
from serving.replication.register import MemoryRegister, Owner
from serving.replication.standby import StandbyCopy
from serving.session.applied_log import AppliedLog
from serving.session.pacing import UNREPORTED_BLOCKS, Pace
from serving.timeline.cue import Cue
from serving.worker.capacity.capacity import Capacity
from serving.worker.denoiser import Denoiser

MANAGER, REPLICA, ATTEMPT, STREAM, CLIENT = "manager", "replica", "attempt", "stream", "client"
HEIGHT, WIDTH = 32, 48
KEPT_FRAMES = 9
"""Latents that a decoder elsewhere would begin with."""

FRAME_BYTES = 200
"""About what the tiny model's frames have."""

HANDLES = Path("/proc/self/fd")
LEAD = UNREPORTED_BLOCKS + 2
"""Blocks by which prompts are early: a session runs so far before its controller has reported what was shown."""

PAGE = 1000

LEASES = LeaseConfig(lease_s=30.0)
"""So long that it outlasts what a crowded machine leaves out; it is renewed as often as one of 2 s."""

RENEW_EVERY_S = 0.5


@dataclass
class Samples(BlockSamples):
    """And how many files are open."""

    files: Values


class Played(NamedTuple):
    """A session at its end: what each block took, and the cues that have applied, as two processes know them."""

    samples: Samples
    frames: int
    applied: list[pb.AppliedCue]
    at_standby: list[pb.AppliedCue]


class Manager:
    """Renews the lease of one copy, and keeps the session's standby copy."""

    def __init__(self, denoiser: Denoiser, session_id: str, made: Prepared, samples: Samples) -> None:
        self._denoiser = denoiser
        self._lease = CopyLease(session_id, ATTEMPT, 1)
        self._samples = samples
        self._contacts = Contacts()
        self.copy = StandbyCopy()
        self._heard(made.reading)

    def renew(self) -> None:
        """Renew the lease, and the controller's stream."""
        request = self._contacts.request(MANAGER, REPLICA, [self._lease], [STREAM])
        self._heard(self._denoiser.renew(request).reading)

    async def keep_renewing(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            self.renew()

    def _heard(self, reading: float) -> None:
        self._contacts.heard(REPLICA, reading, asyncio.get_running_loop().time())

    async def keep_copy(self) -> None:
        """Take what the replica sends for the standby, as it comes through a connection, until cancelled."""
        async with aclosing(self._denoiser.feed(ATTEMPT, MANAGER)) as items:
            async for item in items:
                if item.delta is None:
                    continue
                sent = pickle.dumps(item.delta)
                self.copy.apply(pickle.loads(sent))
                for chunk in item.delta.chunks:
                    self._samples.delta_bytes[min(chunk.block, len(self._samples.ns) - 1)] = len(sent)
                if item.delta.wants_ack:
                    self._denoiser.acknowledge(ATTEMPT, item.delta.number)


async def play(blocks: int) -> Played:
    """Play so many blocks of one session, each with a prompt of its own, as fast as they are made."""
    samples = Samples.of(blocks)
    async with _denoiser() as (denoiser, spec):
        cues = [_cue(spec.stream.blocks, block) for block in range(LEAD)]
        made = await denoiser.prepare(ATTEMPT, spec, cues)
        manager = Manager(denoiser, spec.session_id, made, samples)
        manager.renew()
        subscribed = denoiser.subscribe(ATTEMPT, Role.CONTROLLER, 0, STREAM, CLIENT)
        async with aclosing(subscribed) as events, asyncio.TaskGroup() as work:
            renewing = work.create_task(manager.keep_renewing())
            await anext(events)
            copying = work.create_task(manager.keep_copy())
            frames = await _steer(denoiser, events, spec.stream.blocks, samples)
            applied = await _applied(denoiser)
            renewing.cancel()
            copying.cancel()
        resume = manager.copy.resume_state("the end")
        log = AppliedLog.of(resume.record.applied, resume.past)
        return Played(samples, frames, applied, [write_applied(cue) for cue in log])


@asynccontextmanager
async def _denoiser() -> AsyncIterator[tuple[Denoiser, SessionSpec]]:
    """One with a slot, and a session to open in it."""
    model = preset("tiny")
    stream = replace(model.stream, height=HEIGHT, width=WIDTH)
    engine = StreamEngine(empty_generator(model.transformer, stream, KEPT_FRAMES))
    decoder = EmptyDecoder(stream.blocks, bytes(FRAME_BYTES))
    spec = SessionSpec("session", "caller", model.name, stream, Pace(fps=0), time.time())
    register = MemoryRegister()
    await register.create(spec.session_id, 1, Owner(REPLICA, ATTEMPT, MANAGER))
    denoiser = Denoiser(
        engine, EmptyTextEncoder(model.transformer), decoder, ThreadPoolExecutor(1), slots=1, replica=REPLICA,
        metrics=Uncounted(), register=register, leases=LEASES, capacity=Capacity(model.transformer, stream),
    )  # fmt: skip
    denoiser.start()
    try:
        yield denoiser, spec
        denoiser.check()
    finally:
        await denoiser.stop()


async def _steer(denoiser: Denoiser, events: AsyncIterator[Item], lengths: BlockLengths, samples: Samples) -> int:
    """Start, and answer each block with another prompt; how many frames followed each other."""
    blocks, frames, block, used = len(samples.ns), 0, 0, memory_gauge(CPU)
    await _say(denoiser, "start", start=pb.Start())
    gc.collect()
    began = time.perf_counter_ns()
    async for item in events:
        if item.span is None:
            continue
        if item.span.first_frame != frames:
            raise RuntimeError(f"frame {item.span.first_frame} came where {frames} was next")
        now = time.perf_counter_ns()
        frames = item.span.end_frame
        samples.ns[block], began = now - began, now
        samples.memory_bytes[block], samples.files[block] = used(), sum(1 for _ in HANDLES.iterdir())
        block += 1
        if block == blocks:
            break
        await _say(denoiser, f"shown {block}", shown=pb.Shown(frame=frames - 1))
        await _say(denoiser, f"prompt {block}", schedule_prompt=write_cue(_cue(lengths, block + LEAD - 1)))
    await _say(denoiser, "pause", pause=pb.Pause())
    return frames


def _cue(lengths: BlockLengths, block: int) -> Cue:
    """The prompt with which a block begins."""
    blend, transition = prompt(block)
    return Cue(lengths.pixel_frames(block), blend, transition)


async def _say(denoiser: Denoiser, name: str, **action: Any) -> None:
    """As the controller. Raises RuntimeError where it is refused."""
    receipt = await denoiser.command(ATTEMPT, pb.Command(id=name, client_id=CLIENT, **action), steers=True)
    if receipt.HasField("error"):
        raise RuntimeError(f"{name} was refused: {receipt.error}")


async def _applied(denoiser: Denoiser) -> list[pb.AppliedCue]:
    """All cues that have applied, page by page; the lease is renewed in between."""
    found, token = list[pb.AppliedCue](), ""
    while True:
        page = denoiser.applied_cues(ATTEMPT, token, PAGE)
        found += page.applied
        token = page.next_page_token
        if not token:
            return found
        await asyncio.sleep(0)


def result(played: Played, machine: Machine) -> dict[str, object]:
    """All that was found out. Raises RuntimeError if a prompt is missing, with the replica or its standby."""
    samples = played.samples
    if len(played.applied) != len(samples.ns):
        raise RuntimeError(f"{len(played.applied)} prompts have applied in {len(samples.ns)} blocks")
    if played.applied != played.at_standby:
        raise RuntimeError("the standby's copy is not the session's log")
    return {
        "machine": asdict(machine),
        "blocks": len(samples.ns),
        "frames": played.frames,
        "prompts_applied": len(played.applied),
        "window": WINDOW,
        **samples.early_and_late(),
        "open_files_max": compared(samples.files, np.max),
        "memory_bytes_every_1000": samples.memory_bytes[::1000].tolist(),
    }


def main() -> None:
    """Measure what the command line asks for."""
    torch.set_num_threads(1)
    played = asyncio.run(play(blocks_asked("endless_worker")))
    keep(result(played, Machine.here(CPU)), "endless_worker")


if __name__ == "__main__":
    main()
