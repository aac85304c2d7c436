"""A camera's pictures restyled on a server by one, two and four steps, in both loops, as their sender sees it.

    python -m benchmarks.restyle_steps --seconds 60

Each row is a server of its own with one session, which is pushed a clip as in `benchmarks.restyle_server`. Beside
the age of its frames stands the floor: what it would be if nothing took any time. What becomes of the pictures is
what `benchmarks.restyle` says with the same steps. Rows that were measured before stay where they are not measured
anew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.measure.machine import RESULTS, Machine
from benchmarks.restyle import steps_of
from benchmarks.restyle_server import Latency, camera_units, clip, restyled
from engines.config.geometry import FRAMES_PER_SECOND, TEMPORAL_FACTOR
from engines.config.video_stream import LOOPS, Loop
from serving.client.aio import AsyncClient
from serving.deployments.server_process import local_server
from serving.media.whole_file import write_whole

STEPS = ((850,), (850, 500), (850, 750, 500, 250))
"""Of the pocket model."""

WARM_UP_S = 10.0


@dataclass(frozen=True)
class Row:
    """One number of steps in one loop. `load` is the machine's before the row."""

    machine: Machine
    steps: tuple[int, ...]
    loop: Loop
    floor_ms: float
    latency: Latency
    seconds: float
    frames: int
    dropped: int
    load: tuple[float, float, float]


def floor_ms(steps: int, loop: Loop) -> float:
    """The age of a block's first frame where nothing takes any time.

    Its picture waits for the last one of its block, and in a stream batch for the blocks that push it on.
    """
    blocks_behind = steps - 1 if loop == "batch" else 0
    return 1e3 * (TEMPORAL_FACTOR - 1 + TEMPORAL_FACTOR * blocks_behind) / FRAMES_PER_SECOND


async def measured(server: str, steps: tuple[int, ...], loop: Loop, seconds: float) -> Row:
    """A row, on the server that is there for it."""
    load = os.getloadavg()
    async with AsyncClient(server) as client:
        units = camera_units(await clip(client))
        await restyled(client, units, WARM_UP_S)
        latency, _, frames, progress = await restyled(client, units, seconds)
    machine, floor = Machine.here(torch.device("cpu")), floor_ms(len(steps), loop)
    return Row(machine, steps, loop, floor, latency, seconds, frames, progress.dropped, load)


def keep(row: Row, output: Path) -> None:
    """Write the row in place of one of the same steps and loop, or behind all others."""
    rows = json.loads(output.read_text())["rows"] if output.is_file() else []
    kept = {(tuple(one["steps"]), one["loop"]): one for one in rows} | {(row.steps, row.loop): asdict(row)}
    write_whole(output, json.dumps({"rows": list(kept.values())}, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each row (default: 60)")
    parser.add_argument("--steps", nargs="+", type=steps_of, default=STEPS, metavar="T,T")
    parser.add_argument("--loop", nargs="+", choices=LOOPS, default=LOOPS)
    parser.add_argument("--output", type=Path, default=RESULTS / "restyle_steps_pocket_cpu.json")
    options = parser.parse_args(arguments)
    for steps, loop in product(options.steps, options.loop):
        with TemporaryDirectory() as folder:
            words = ",".join(map(str, steps))
            serve = ["--threads", "1", "--recordings", folder, "--video-loop", loop, "--video-steps", words]
            with local_server(serve) as server:
                row = asyncio.run(measured(server.address, steps, loop, options.seconds))
        keep(row, options.output)
        print(row, flush=True)


if __name__ == "__main__":
    main()
