"""Shows that a served session has no end: time, memory and handles of a block with a prompt, early and late.

    python -m benchmarks.endless_server --blocks 12000

A real client steers a session of the pocket model in pictures of 32x48, unpaced: with every block that it is sent
it schedules the prompt of one a few blocks later. Every stage of the server is in a process of its own, and a
standby keeps a copy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.endless_session import prompt
from benchmarks.harness.holdings import COUNTED, Holdings, holdings
from benchmarks.harness.replicas import joined_server
from benchmarks.measure.machine import RESULTS, Machine
from engines.config.geometry import BlockLengths
from serving.client.aio import AsyncClient
from serving.client.interactive import InteractiveSession
from serving.config import ServerConfig
from serving.deployments.server_process import free_ports
from serving.media.whole_file import write_whole
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Cue

HEIGHT, WIDTH = 32, 48
AHEAD = 2
LENGTHS = BlockLengths()
LEAD = 12
"""Blocks between the last that has come and the one whose prompt is scheduled: more than are made ahead."""

SAMPLES = 120
"""How often the processes are looked at."""


@dataclass
class Played:
    """What the client saw: when each block came, the frames and the cues in order, and what processes held.

    Of the prompts that were said, so many have applied and are pending at the end.
    """

    at: list[float] = field(default_factory=list)
    frames: int = 0
    misplaced: list[int] = field(default_factory=list)
    said: int = 1
    applied: int = 0
    pending: int = 0
    held: list[Sequence[Holdings]] = field(default_factory=list)

    def took(self, chunk: pb.Chunk) -> None:
        """A block has come; its frames must follow the ones before."""
        self.misplaced += [] if chunk.first_frame == self.frames else [chunk.first_frame]
        self.frames = chunk.first_frame + len(chunk.units)
        self.at.append(time.monotonic())


async def play(address: str, logs: Path, blocks: int) -> Played:
    """Play so many blocks, and count what has applied by the end."""
    played, first = Played(), Cue(0, prompt(0)[0])
    async with AsyncClient(address) as client:
        session = await client.create(fps=0, ahead=AHEAD, height=HEIGHT, width=WIDTH, cues=[first])
        async with client.control(session, 0) as controller:
            for _ in range(LEAD):
                await _say(controller, played)
            await controller.start()
            async for event in controller:
                if event.HasField("chunk"):
                    played.took(event.chunk)
                    await _say(controller, played)
                    if len(played.at) % max(1, blocks // SAMPLES) == 0:
                        played.held.append(await asyncio.to_thread(holdings, logs))
                if len(played.at) >= blocks:
                    break
            await controller.pause()
        played.applied = len([cue async for cue in client.applied_cues(session.id)])
        played.pending = len([cue async for cue in client.pending_cues(session.id)])
        await client.delete(session.id)
    return played


async def _say(controller: InteractiveSession, played: Played) -> None:
    """Schedule the prompt of the next block that has none."""
    blend, transition = prompt(played.said)
    await controller.schedule(blend, LENGTHS.pixel_frames(played.said), transition)
    played.said += 1


def summary(played: Played) -> dict[str, Any]:
    """The first quarter is warm-up: the second is compared with the last."""
    ms, blocks = np.diff(played.at) * 1e3, len(played.at)
    quarter = blocks // 4
    early, late = slice(quarter, 2 * quarter), slice(-quarter, None)
    return {
        "blocks": blocks,
        "frames": played.frames,
        "frames_misplaced": played.misplaced,
        "prompts": {"said": played.said, "applied": played.applied, "pending": played.pending},
        "seconds": round(played.at[-1] - played.at[0]),
        "ms_per_block_median": {"early": float(np.median(ms[early])), "late": float(np.median(ms[late]))},
        "ms_per_block_p99": {
            "early": float(np.quantile(ms[early], 0.99)),
            "late": float(np.quantile(ms[late], 0.99)),
        },
        "held": _held(played.held),
    }


def _held(samples: Sequence[Sequence[Holdings]]) -> dict[str, dict[str, dict[str, float]]]:
    """Medians, by process."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    return {
        f"{process.name} {process.pid}": {
            kind: {"early": _median(early, process.pid, kind), "late": _median(late, process.pid, kind)}
            for kind in COUNTED
        }
        for process in samples[-1]
    }


def _median(samples: Sequence[Sequence[Holdings]], pid: int, kind: str) -> float:
    return float(np.median([getattr(one, kind) for held in samples for one in held if one.pid == pid]))


def run(blocks: int, folder: Path) -> Played:
    """Start a server, play, and stop it."""
    ports = free_ports()
    config = ServerConfig(
        stages="separate", denoisers=1, managers=2, grpc_port=ports.grpc, http_port=ports.http,
        metrics_port=ports.metrics, recordings=folder,
    )  # fmt: skip
    with joined_server(config) as running:
        return asyncio.run(play(f"127.0.0.1:{config.grpc_port}", running.logs, blocks))


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endless_server")
    parser.add_argument("--blocks", type=int, default=12_000)
    options = parser.parse_args()
    if options.blocks < 8:
        parser.error(f"--blocks is {options.blocks}; early and late blocks need 8")
    machine = asdict(Machine.here(torch.device("cpu")))
    with TemporaryDirectory() as folder:
        found = summary(run(options.blocks, Path(folder)))
    file = RESULTS / "endless_server_cpu.json"
    write_whole(file, json.dumps({"machine": machine, **found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    print(file)


if __name__ == "__main__":
    main()
