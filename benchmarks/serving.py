"""Interactive sessions on a server, as those see them who watch: against real gRPC and a real Ray cluster.

    python -m benchmarks.serving --seconds 60

Two paced sessions steered live; one as fast as it goes, beside `longtake generate`, which is the engine and the
encoder alone; the time to be refused; and the memory of every process while a client has stopped reading.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt

from benchmarks.harness.processes import Tree, Usage
from benchmarks.measure.machine import RESULTS, Machine
from engines.config.geometry import FRAMES_PER_SECOND
from serving.client.aio import AsyncClient
from serving.client.capture import Playback, opened, shown, steer, time_of
from serving.deployments.server_process import local_server
from serving.errors import SlotsFull
from serving.media.whole_file import whole_file, write_whole
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue

SESSIONS = 2
SWITCH_EVERY_S = 4
REFUSALS = 50
WARM_UP_FRAMES = 57
MEMORY_EVERY_S = 2.0

LATE_MS = 20.0
"""A chunk that comes this much after its time is late; the event loop of a client has some jitter of its own."""

HOURS = ("noon", "dusk", "night", "dawn")
PROMPTS = [f"a red balloon hovering over rolling hills at {hour} under a clear sky" for hour in HOURS]


class StreamCursor(NamedTuple):
    """One paced session: times in milliseconds; `waited` is how late each chunk was."""

    first_frame: float
    intervals: list[float]
    waited: list[float]
    there: list[float]
    seen: list[float]
    delivered: int
    generated: int


class Unpaced(NamedTuple):
    """Frames a second: sent by the server to one session, and of a film of the same length."""

    served: float
    alone: float


@dataclass(frozen=True)
class Report:
    """All that was found out. `memory` has for each moment in seconds the MiB of every kind of process."""

    paced: Sequence[StreamCursor]
    usage: Usage
    unpaced: Sequence[Unpaced]
    refused_ms: Sequence[float]
    memory: Sequence[tuple[float, Mapping[str, float]]]
    load: tuple[float, float, float]


async def view(client: AsyncClient, film: Path, seed: int, switches: int) -> StreamCursor:
    """Steer a session at the pace of a player, and note when everything came."""
    cues = [Cue(0, Blend.of(PROMPTS[0]))]
    prompts = [PROMPTS[number % len(PROMPTS)] for number in range(1, switches + 1)]
    async with (
        opened(client, cues, seed=seed, fps=FRAMES_PER_SECOND) as session,
        client.control(session, from_frame=0) as controller,
    ):
        with closing(Playback(controller, film)) as playback:
            started = asyncio.get_running_loop().time()
            await controller.start()
            said = await steer(controller, playback, prompts, SWITCH_EVERY_S * FRAMES_PER_SECOND)
            generated = (await client.get(session.id)).next_frame
    arrivals = playback.arrivals
    times = shown(arrivals, FRAMES_PER_SECOND)
    return StreamCursor(
        first_frame=1e3 * (arrivals[0].at - started),
        intervals=[1e3 * (after.at - before.at) for before, after in itertools.pairwise(arrivals)],
        waited=[1e3 * time.waited for time in times],
        there=[1e3 * (time_of(switch.frame, arrivals) - switch.said_at) for switch in said],
        seen=[1e3 * (time_of(switch.frame, times) - switch.said_at) for switch in said],
        delivered=playback.frames,
        generated=generated,
    )


async def views(server: str, folder: Path, seconds: float) -> list[StreamCursor]:
    """All paced sessions at once."""
    switches = max(1, round(seconds / SWITCH_EVERY_S) - 1)
    async with AsyncClient(server) as client:
        films = [folder / f"paced{number}.mp4" for number in range(SESSIONS)]
        return await asyncio.gather(*(view(client, film, seed, switches) for seed, film in enumerate(films)))


async def unpaced(server: str, film: Path, frames: int) -> float:
    """Frames a second of one session that is sent all that can be made, once it runs evenly."""
    async with (
        AsyncClient(server) as client,
        opened(client, [Cue(0, Blend.of(PROMPTS[0]))], seed=1, fps=0, ahead=2) as session,
        client.control(session, from_frame=0) as controller,
    ):
        with closing(Playback(controller, film)) as playback:
            await controller.start()
            await playback.until(frames)
    first = next(arrival for arrival in playback.arrivals if arrival.end_frame >= WARM_UP_FRAMES)
    last = playback.arrivals[-1]
    return (last.end_frame - first.end_frame) / (last.at - first.at)


def alone(folder: Path, frames: int) -> float:
    """Frames a second of `longtake generate` with the same prompt and length, on as many threads."""
    timeline = folder / "film.txt"
    timeline.write_text(PROMPTS[0])
    command = [
        *(sys.executable, "-m", "serving.cli.main", "generate", str(timeline), "-o", str(folder / "film.mp4")),
        *("--seconds", str(frames / FRAMES_PER_SECOND), "--threads", "1"),
    ]
    moments = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if match := re.match(r"block \d+/\d+  (\d+) frames", line):
                moments.append((int(match[1]), time.monotonic()))
    if process.returncode != 0:
        raise RuntimeError(f"longtake generate ended with {process.returncode}")
    first, last = next(moment for moment in moments if moment[0] >= WARM_UP_FRAMES), moments[-1]
    return (last[0] - first[0]) / (last[1] - first[1])


async def refusals(server: str) -> list[float]:
    """How long it takes to be told that there is no place left, in milliseconds."""
    times = []
    async with AsyncClient(server) as client, AsyncExitStack() as stack:
        for _ in range(SESSIONS):
            await stack.enter_async_context(opened(client, [Cue(0, Blend.of(PROMPTS[0]))]))
        for _ in range(REFUSALS):
            asked = time.perf_counter()
            try:
                await client.create()
            except SlotsFull:
                times.append(1e3 * (time.perf_counter() - asked))
    if len(times) != REFUSALS:
        raise RuntimeError(f"{REFUSALS - len(times)} sessions more were opened than there is place for")
    return times


async def stalled(server: str, tree: Tree, film: Path, seconds: float) -> list[tuple[float, dict[str, float]]]:
    """Memory while a session is made as fast as it goes, and one who watches it reads nothing."""
    samples = []
    async with (
        AsyncClient(server) as client,
        opened(client, [Cue(0, Blend.of(PROMPTS[0]))], seed=1, fps=0, ahead=2) as session,
        client.control(session, from_frame=0) as controller,
    ):
        watch = client.stub.Watch(pb.WatchRequest(session_id=session.id), metadata=client.metadata)
        await watch.read()
        with closing(Playback(controller, film)) as playback:
            await controller.start()
            started = time.monotonic()
            while (now := time.monotonic() - started) < seconds:
                samples.append((round(now, 1), tree.memory_mib()))
                until = time.monotonic() + MEMORY_EVERY_S
                while time.monotonic() < until:
                    await playback.until(playback.frames + 1)
        watch.cancel()
    return samples


def measure(seconds: float, folder: Path) -> Report:
    """Everything, one after the other, on a server of its own."""
    frames, load = round(seconds * FRAMES_PER_SECOND), os.getloadavg()
    options = ["--slots", str(SESSIONS), "--threads", "1", "--recordings", str(folder)]
    with local_server(options) as server:
        tree = Tree(server.pid)
        asyncio.run(unpaced(server.address, folder / "warm.mp4", 4 * WARM_UP_FRAMES))
        meter = tree.measure()
        paced = asyncio.run(views(server.address, folder, seconds))
        usage = meter.read()
        pairs = []
        for _ in range(3):
            served = asyncio.run(unpaced(server.address, folder / "unpaced.mp4", frames))
            pairs.append(Unpaced(served, alone(folder, frames)))
        refused = asyncio.run(refusals(server.address))
        memory = asyncio.run(stalled(server.address, tree, folder / "stalled.mp4", seconds))
    return Report(paced, usage, pairs, refused, memory, load)


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{percent}": round(float(np.percentile(values, percent)), 1) for percent in (50, 95, 99)}


def summary(report: Report) -> dict[str, Any]:
    """The numbers that have marks."""
    waited = [ms for viewing in report.paced for ms in viewing.waited]
    ratio = float(np.median([pair.served / pair.alone for pair in report.unpaced]))
    first, last = report.memory[len(report.memory) // 4][1], report.memory[-1][1]
    return {
        "sessions": SESSIONS,
        "first_frame_ms": [round(viewing.first_frame, 1) for viewing in report.paced],
        "chunk_interval_ms": _quantiles([ms for viewing in report.paced for ms in viewing.intervals]),
        "blocks": len(waited),
        "blocks_on_time": round(sum(ms <= LATE_MS for ms in waited) / len(waited), 4),
        "command_to_client_ms": _quantiles([ms for viewing in report.paced for ms in viewing.there]),
        "command_to_viewer_ms": _quantiles([ms for viewing in report.paced for ms in viewing.seen]),
        "delivered_frames": sum(viewing.delivered for viewing in report.paced),
        "generated_frames": sum(viewing.generated for viewing in report.paced),
        "cores_while_paced": report.usage.cores,
        "cores_of_other_programs": report.usage.others,
        "unpaced_frames_per_second": [round(pair.served, 1) for pair in report.unpaced],
        "alone_frames_per_second": [round(pair.alone, 1) for pair in report.unpaced],
        "unpaced_by_alone": round(ratio, 3),
        "refused_ms": _quantiles(report.refused_ms),
        "memory_growth_mib": {name: round(last[name] - first.get(name, 0), 1) for name in last},
    }


def plot(report: Report, file: Path) -> None:
    """Draw how late each block was, how long each command took, and the memory of every process."""
    mpl.use("Agg")
    figure, (late, commands, memory) = plt.subplots(3, 1, figsize=(9, 9), layout="constrained")
    for number, viewing in enumerate(report.paced):
        late.plot(viewing.waited, ".", label=f"session {number}")
        commands.plot(viewing.there, "o", color=f"C{number}", label=f"session {number}: at the client")
        commands.plot(viewing.seen, "x", color=f"C{number}", label=f"session {number}: on screen")
    late.set(xlabel="block", ylabel="late, ms", title=f"{SESSIONS} paced sessions at {FRAMES_PER_SECOND} frames/s")
    commands.set(xlabel="prompt switch", ylabel="after the command, ms", ylim=(0, None))
    for name in report.memory[-1][1]:
        moments = [(moment, mib[name]) for moment, mib in report.memory if name in mib]
        memory.plot(*zip(*moments, strict=True), label=name)
    memory.set(xlabel="seconds since a client stopped reading", ylabel="memory, MiB", ylim=(0, None))
    for axes, corner in ((late, "upper right"), (commands, "lower right"), (memory, "lower right")):
        axes.legend(loc=corner, fontsize="small")
    with whole_file(file) as place:
        figure.savefig(place, dpi=100)
    plt.close(figure)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of each part (default: 60)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for JSON and plot")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        report = measure(options.seconds, Path(folder))
    found = summary(report)
    print(json.dumps(found, indent=1))
    machine = asdict(Machine.here(torch.device("cpu")))
    document = {"machine": machine, **found, "samples": asdict(report)}
    write_whole(options.output / "serving_pocket_cpu.json", json.dumps(document, indent=1) + "\n")
    plot(report, options.output / "serving_pocket_cpu.png")


if __name__ == "__main__":
    main()
