"""How long a viewer waits while the session goes to another server.

    python -m benchmarks.evacuation --repeats 5

Two servers on this machine, each as `longtake serve` starts it by default, with a Ray cluster of its own. A
session at one is paced as a player would pace it, with one block ahead; in mid-stream the server is evacuated into
the other. What counts is the time without a chunk, which is 0.75 s where nothing happens. Then they change places.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.harness.session_gap import gap_s
from benchmarks.measure.machine import RESULTS, Machine
from serving.client.interactive import InteractiveSession
from serving.client.operator import OperatorCalls
from serving.deployments.server_process import local_server
from serving.media.whole_file import write_whole
from serving.pb.longtake.v1 import sessions_pb2 as pb

logger = logging.getLogger(__name__)

OPERATOR = "known-to-both-servers"


async def moved_gap_s(old: str, new: str, film: Path) -> float:
    """As `gap_s`, where all sessions go to another server; then the old one takes sessions again."""
    operator = OperatorCalls(old, OPERATOR)

    async def evacuate(controller: InteractiveSession, session: pb.Session) -> None:
        await operator.evacuate(pb.EvacuateServerRequest(to=new, public=new))

    gap = await gap_s(old, film, evacuate)
    await operator.evacuate(pb.EvacuateServerRequest())
    return gap


def measure(repeats: int, folder: Path) -> list[float]:
    """Seconds without a chunk."""
    token, gaps = folder / "operator", list[float]()
    token.write_text(OPERATOR)
    own = ("--operator-token", str(token), "--recordings", str(folder))
    with local_server(own) as one, local_server(own) as other:
        old, new = one.address, other.address
        for _ in range(repeats):
            gaps.append(asyncio.run(moved_gap_s(old, new, folder / "film.mp4")))
            logger.info("%.2f s without a chunk", gaps[-1])
            old, new = new, old
    return gaps


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="(default: 10)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    load = os.getloadavg()[0]
    with TemporaryDirectory() as folder:
        gaps = measure(options.repeats, Path(folder))
    document = {
        "machine": asdict(Machine.here(torch.device("cpu"))), "load_before": round(load, 1),
        "median_s": round(float(np.median(gaps)), 2), "longest_s": round(max(gaps), 2), "samples_s": gaps,
    }  # fmt: skip
    print(json.dumps(document, indent=1))
    write_whole(options.output / "evacuation_pocket_cpu.json", json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
