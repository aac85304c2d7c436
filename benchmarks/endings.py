"""Measures how long `longtake serve` takes to end: when it is told to, and when a process of it dies.

    python -m benchmarks.endings

It has ended when none of its processes is left. What is promised is 10 s after a signal, and 5 s after a death.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import psutil
import torch

from benchmarks.harness.processes import part_of, tree_of
from benchmarks.measure.machine import RESULTS, Machine
from serving.deployments.server_process import local_server
from serving.launch.process_tree import is_alive
from serving.media.whole_file import write_whole

TOLD_S, DIED_S = 10.0, 5.0

SETTLED_S = 3.0
"""After a start, before anything is ended."""

LOOK_S, LONGEST_S = 0.01, 60.0

FILE = RESULTS / "endings_cpu.json"


class Ending(NamedTuple):
    """What ends a server of these processes, the first of which is the command, and how soon it should have."""

    name: str
    end: Callable[[Sequence[psutil.Process]], None]
    promised_s: float


def _signal(number: int, processes: Sequence[psutil.Process]) -> None:
    processes[0].send_signal(number)


def _signal_group(number: int, processes: Sequence[psutil.Process]) -> None:
    os.killpg(processes[0].pid, number)


def _kill_part(part: str, processes: Sequence[psutil.Process]) -> None:
    part_of(processes, part).kill()


ENDINGS = (
    Ending("Ctrl-C", partial(_signal, signal.SIGINT), TOLD_S),
    Ending("SIGTERM", partial(_signal, signal.SIGTERM), TOLD_S),
    Ending("SIGTERM to its group", partial(_signal_group, signal.SIGTERM), TOLD_S),
    Ending("the command is killed", partial(_signal, signal.SIGKILL), TOLD_S),
    Ending("Ray's head dies", partial(_kill_part, "gcs_server"), DIED_S),
    Ending("the raylet dies", partial(_kill_part, "raylet/raylet"), DIED_S),
    Ending("the dashboard agent dies", partial(_kill_part, "DashboardAgent"), DIED_S),
    Ending("the environment agent dies", partial(_kill_part, "RuntimeEnvAgent"), DIED_S),
    Ending("the cluster's process dies", partial(_kill_part, "cluster_process"), DIED_S),
)


def measure(ending: Ending) -> float:
    """Seconds until none of a server's processes is left. Raises TimeoutError after `LONGEST_S`."""
    with local_server() as server:
        processes = tree_of(server.pid)
        time.sleep(SETTLED_S)
        began = time.monotonic()
        ending.end(processes)
        while left := [process for process in processes if is_alive(process)]:
            if time.monotonic() - began > LONGEST_S:
                raise TimeoutError(f"{ending.name}: after {LONGEST_S:.0f} s these are left: {left}")
            time.sleep(LOOK_S)
        return time.monotonic() - began


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endings")
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    found = {}
    for ending in ENDINGS:
        seconds = sorted(round(measure(ending), 2) for _ in range(rounds))
        found[ending.name] = {"promised_s": ending.promised_s, "seconds": seconds}
        print(f"{ending.name:30} {seconds} (promised: {ending.promised_s:.0f} s)", flush=True)
    result = {"machine": asdict(Machine.here(torch.device("cpu"))), "endings": found}
    write_whole(FILE, json.dumps(result, indent=1) + "\n")
    print(FILE)


if __name__ == "__main__":
    main()
