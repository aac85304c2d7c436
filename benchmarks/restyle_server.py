"""A camera's pictures restyled on a server, as their sender sees it: against real gRPC and a real Ray cluster.

    python -m benchmarks.restyle_server --seconds 300

One session is pushed a clip at 30 pictures a second as H.264, while another makes a video from prompts at its own
pace. Latency is from a picture's sending to the chunk with its frame; since a block has four pictures, the first
of them waits 3/16 s for the last. Then sessions are opened one by one, to see how long the first frame takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import cycle, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness.processes import Tree, Usage
from benchmarks.measure.machine import RESULTS, Machine
from engines.config.geometry import FRAMES_PER_SECOND
from serving.client.aio import AsyncClient
from serving.client.camera import push
from serving.client.capture import Playback, opened, shown
from serving.client.interactive import InteractiveSession
from serving.deployments.server_process import local_server
from serving.media.encoder import ChunkEncoder
from serving.media.whole_file import write_whole
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue

NOON = "a red balloon drifting steadily to the right over rolling hills at noon under a clear sky"
NIGHT = "a red balloon drifting steadily to the right over rolling hills at night under a clear sky"

RATE = 30
"""Pictures a second of the camera."""

KEY_EVERY = 60
CLIP_S = 8
MEMORY_EVERY_S = 10.0
OPENINGS = 20
LATE_MS = 20.0

COUNTED_S = 10.0
"""In which the server has told of the last picture."""


@dataclass(frozen=True)
class Latency:
    """Of the frames of one session: milliseconds, and by how many they grow in a second."""

    p50: float
    p95: float
    worst: float
    slope_ms_per_s: float

    @classmethod
    def of(cls, sent: Sequence[float], came: Sequence[float]) -> Latency:
        """From when the picture of each frame was sent to when the frame was there, both in seconds."""
        taken = 1e3 * (np.asarray(came) - np.asarray(sent))
        p50, p95 = np.percentile(taken, [50, 95])
        slope = np.polyfit(np.asarray(came), taken, 1)[0]
        return cls(
            round(float(p50), 1), round(float(p95), 1), round(float(taken.max()), 1), round(float(slope), 3)
        )


@dataclass(frozen=True)
class Memory:
    """Of all processes of the server, every `MEMORY_EVERY_S`; and how it grows in the second half, by a line."""

    mib: Sequence[float]
    mib_per_minute: float

    @classmethod
    def of(cls, mib: Sequence[float]) -> Memory:
        """From at least four samples."""
        late = mib[len(mib) // 2 :]
        slope = np.polyfit(np.arange(len(late)) * MEMORY_EVERY_S / 60, late, 1)[0]
        return cls([round(one, 1) for one in mib], round(float(slope), 2))


@dataclass(frozen=True)
class Report:
    """All that was found out."""

    seconds: float
    sent: int
    frames: int
    input: dict[str, int]
    latency: Latency
    late_beside: float
    chunks_beside: int
    memory: Memory
    usage: Usage
    first_frame_ms: Sequence[float]
    four_frame_chunks: float
    load: tuple[float, float, float]


async def clip(client: AsyncClient) -> NDArray[np.uint8]:
    """Some seconds of a video that the server makes from a prompt: [frames, height, width, 3]."""
    decoder, pictures = av.CodecContext.create("h264", "r"), list[NDArray[np.uint8]]()
    async with (
        opened(client, [Cue(0, Blend.of(NOON))], seed=5, fps=0, ahead=4) as session,
        client.control(session, from_frame=0) as controller,
    ):
        await controller.start()
        async for event in controller:
            for unit in event.chunk.units:
                shown_now = [f.to_ndarray(format="rgb24") for f in decoder.decode(av.Packet(unit.data))]
                pictures += [picture.astype(np.uint8, copy=False) for picture in shown_now]
            if len(pictures) >= CLIP_S * FRAMES_PER_SECOND:
                return np.stack(pictures)
    raise RuntimeError("the session ended before its clip was there")


def camera_units(pictures: NDArray[np.uint8]) -> list[bytes]:
    """The clip forwards and backwards, as a camera sends it."""
    context = av.CodecContext.create("libx264", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width, context.pix_fmt = *pictures.shape[1:3], "yuv420p"
    context.framerate, context.options = (
        Fraction(RATE),
        {"tune": "zerolatency", "preset": "veryfast", "g": str(KEY_EVERY)},
    )
    units = []
    for picture in (*pictures, *pictures[::-1]):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        units += [bytes(packet) for packet in context.encode(frame)]
    return units


def chunk_ratio(pictures: NDArray[np.uint8]) -> float:
    """Bytes of chunks of four frames, each with a key, over those of chunks of twelve."""
    encoder, whole = ChunkEncoder(*pictures.shape[1:3]), len(pictures) // 12 * 12
    sizes = [
        sum(encoder.encode(0, 0, pictures[at : at + frames]).nbytes for at in range(0, whole, frames))
        for frames in (4, 12)
    ]
    return round(sizes[0] / sizes[1], 3)


async def push_clip(
    controller: InteractiveSession, units: Sequence[bytes], sent: list[float], stop: asyncio.Event
) -> None:
    """Units at the camera's rate, over and over again until it is to `stop`; `sent` says when each was."""
    endless = takewhile(lambda _: not stop.is_set(), cycle(units))
    await push(controller, endless, "h264", RATE, lambda _, at: sent.append(at))


async def restyled(
    client: AsyncClient, units: Sequence[bytes], seconds: float
) -> tuple[Latency, int, int, pb.InputProgress]:
    """The latency of one session's frames, how many pictures were sent, frames came, and what became of them.

    Raises RuntimeError unless the server tells of every picture.
    """
    clock, sent, shown_of, came = asyncio.get_running_loop().time, list[float](), list[int](), list[float]()
    progress = pb.InputProgress()
    async with (
        opened(client, [Cue(0, Blend.of(NIGHT))], seed=7, restyles=True) as session,
        client.control(session, from_frame=0) as controller,
    ):
        await controller.start()
        stop = asyncio.Event()
        pushing = asyncio.create_task(push_clip(controller, units, sent, stop))
        until = clock() + seconds
        async for event in controller:
            if event.HasField("chunk"):
                shown_of += [unit.picture for unit in event.chunk.units]
                came += [clock()] * len(event.chunk.units)
            elif event.HasField("progress"):
                progress = event.progress.input
            if clock() > until:
                stop.set()
            if pushing.done() and progress.received == len(sent):
                break
            if clock() > until + COUNTED_S:
                raise RuntimeError(f"{len(sent)} pictures were sent, and the server tells of {progress.received}")
    return Latency.of([sent[number] for number in shown_of], came), len(sent), len(came), progress


async def beside(client: AsyncClient, film: Path, seconds: float) -> tuple[int, int]:
    """Frames of a session from prompts at its own pace, and its chunks that came late."""
    async with (
        opened(client, [Cue(0, Blend.of(NOON))], seed=1, fps=FRAMES_PER_SECOND) as session,
        client.control(session, from_frame=0) as controller,
    ):
        with closing(Playback(controller, film)) as playback:
            await controller.start()
            await playback.until(round(seconds * FRAMES_PER_SECOND))
    times = shown(playback.arrivals, FRAMES_PER_SECOND)
    return len(times), sum(1e3 * time.waited > LATE_MS for time in times)


async def first_frame_ms(client: AsyncClient, units: Sequence[bytes]) -> float:
    """From the first picture to the first frame."""
    sent = list[float]()
    async with (
        opened(client, [Cue(0, Blend.of(NIGHT))], restyles=True) as session,
        client.control(session, from_frame=0) as controller,
    ):
        await controller.start()
        pushing = asyncio.create_task(push_clip(controller, units, sent, asyncio.Event()))
        async for event in controller:
            if event.HasField("chunk"):
                pushing.cancel()
                return 1e3 * (asyncio.get_running_loop().time() - sent[0])
    raise RuntimeError("the session ended before its first frame")


async def memory_of(tree: Tree, seconds: float) -> Memory:
    """What its processes take for so long."""
    mib = list[float]()
    for _ in range(max(4, round(seconds / MEMORY_EVERY_S))):
        mib.append(sum(tree.memory_mib().values()))
        await asyncio.sleep(MEMORY_EVERY_S)
    return Memory.of(mib)


async def measured(
    server: str, pid: int, folder: Path, seconds: float, load: tuple[float, float, float]
) -> Report:
    """Everything, one after the other."""
    tree = Tree(pid)
    async with AsyncClient(server) as client:
        pictures = await clip(client)
        units = camera_units(pictures)
        await restyled(client, units, 10.0)
        meter = tree.measure()
        (latency, sent, frames, progress), (chunks, late), memory = await asyncio.gather(
            restyled(client, units, seconds), beside(client, folder / "beside.mp4", seconds),
            memory_of(tree, seconds),
        )  # fmt: skip
        usage = meter.read()
        openings = [await first_frame_ms(client, units) for _ in range(OPENINGS)]
    counts = {"received": progress.received, "dropped": progress.dropped, "broken": progress.broken}
    return Report(
        seconds, sent, frames, counts, latency, late / chunks, chunks, memory, usage,
        sorted(round(ms, 1) for ms in openings), chunk_ratio(pictures), load,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the long session (default: 60)")
    parser.add_argument("--output", type=Path, default=RESULTS / "restyle_server_pocket_cpu.json")
    options = parser.parse_args(arguments)
    load = os.getloadavg()
    with TemporaryDirectory() as folder:
        serve = ["--slots", "2", "--threads", "1", "--recordings", folder]
        with local_server(serve) as server:
            report = asyncio.run(measured(server.address, server.pid, Path(folder), options.seconds, load))
    kept = {"machine": asdict(Machine.here(torch.device("cpu"))), **asdict(report)}
    write_whole(options.output, json.dumps(kept, indent=1) + "\n")
    print(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
