"""How long a viewer waits when a replica is killed or falls silent in mid-stream.

    python -m benchmarks.failover --repeats 5

Two servers: the one that `longtake serve` starts by default, which has one replica with all stages and one
manager, and one with two replicas of every stage, each in a process of its own. A session is paced as a player
would pace it, with one block ahead. Each time the replica that works for the session is sent SIGKILL or SIGSTOP,
and what counts is the time without a chunk, which is 0.75 s where nothing happens.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import signal
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.harness.replicas import Replicas, joined_server, wait_until_whole
from benchmarks.harness.session_gap import gap_s
from benchmarks.measure.machine import RESULTS, Machine
from serving.client.interactive import InteractiveSession
from serving.config import ServerConfig
from serving.deployments.server_process import free_ports
from serving.media.whole_file import write_whole
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.leases import LeaseConfig
from serving.timeline.cue import Blend

logger = logging.getLogger(__name__)

LATER = "a red balloon hovering over rolling hills at night under a clear sky"


class Stage(NamedTuple):
    """A deployment, and what the replica that works for a session logged of it."""

    deployment: str
    message: str


STAGES = (
    Stage("Denoiser", "session opened"),
    Stage("VideoDecoder", "decoder opened"),
    Stage("TextEncoder", "prompt encoded"),
    Stage("SessionManager", "standby of a session"),
)
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)


class Setup(NamedTuple):
    """A server by its settings, and the stages that are deployments of it."""

    settings: dict[str, Any]
    stages: tuple[Stage, ...]


SETUPS = {
    "default": Setup({}, (STAGES[0], STAGES[3])),
    "separate": Setup(
        {"stages": "separate", "denoisers": 2, "decoders": 2, "text_encoders": 2, "managers": 2}, STAGES
    ),
}


async def hurt_gap_s(address: str, replicas: Replicas, stage: Stage, number: signal.Signals, film: Path) -> float:
    """As `gap_s`, where a replica of the session is sent a signal."""

    async def hurt(controller: InteractiveSession, session: pb.Session) -> None:
        replicas.send(number, *stage, session.id)
        # The text encoder is needed for prompts alone.
        await controller.schedule(Blend.of(LATER))

    return await gap_s(address, film, hurt)


def measure(setup: Setup, repeats: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds without a chunk, by deployment and signal."""
    ports = free_ports()
    config = ServerConfig(
        grpc_port=ports.grpc, http_port=ports.http, metrics_port=ports.metrics, recordings=folder, **setup.settings
    )
    address = f"127.0.0.1:{config.grpc_port}"
    gaps: dict[str, dict[str, list[float]]] = {}
    with joined_server(config) as running:
        for stage, number in itertools.product(setup.stages, SIGNALS):
            found = gaps.setdefault(stage.deployment, {}).setdefault(number.name, [])
            for _ in range(repeats):
                wait_until_whole()
                logger.info("%s %s", stage.deployment, number.name)
                with Replicas(running.logs) as replicas:
                    found.append(asyncio.run(hurt_gap_s(address, replicas, stage, number, folder / "film.mp4")))
                logger.info("%.2f s without a chunk", found[-1])
    return gaps


def summary(gaps: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Median and longest of each."""
    return {
        deployment: {
            name: {"median_s": round(float(np.median(found)), 2), "longest_s": round(max(found), 2)}
            for name, found in by_signal.items()
        }
        for deployment, by_signal in gaps.items()
    }


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each (default: 5)")
    parser.add_argument("--setups", nargs="+", choices=SETUPS, default=list(SETUPS), help="servers; else both")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    gaps = {}
    for name in options.setups:
        with TemporaryDirectory() as folder:
            gaps[name] = measure(SETUPS[name], options.repeats, Path(folder))
    without_a_chunk = {name: summary(found) for name, found in gaps.items()}
    print(json.dumps(without_a_chunk, indent=1))
    lease_s = LeaseConfig().lease_s
    document = {
        "machine": asdict(Machine.here(torch.device("cpu"))), "lease_s": lease_s,
        "without_a_chunk": without_a_chunk, "samples_s": gaps,
    }  # fmt: skip
    write_whole(options.output / "failover_pocket_cpu.json", json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
