"""A tree of processes as the system sees it: what each computes and holds, and what everybody else computes."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

MIB = 1 << 20

ACTOR = "ray::"
"""Begins the title of Ray's workers, which ends with the method that is running."""


def tree_of(pid: int) -> list[psutil.Process]:
    """A process, and all below it."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def part_of(processes: Sequence[psutil.Process], part: str) -> psutil.Process:
    """The first whose name, or whose command line, has `part` in it. Raises StopIteration where none has."""
    return next(found for found in processes if part in f"{found.name()} {' '.join(found.cmdline())}")


class Usage(NamedTuple):
    """Cores in use on average, by what the processes are called; `others` are all that are not of the tree."""

    seconds: float
    cores: dict[str, float]
    others: float


class Tree:
    """A process and all below it, and this one as "client"."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def memory_mib(self) -> dict[str, float]:
        """Anonymous resident memory by name: pages of mapped files can be dropped at any time."""
        sums: defaultdict[str, float] = defaultdict(float)
        for process, name in self._named():
            with contextlib.suppress(OSError):
                sums[name] += anonymous_bytes(process.pid) / MIB
        return {name: round(mib, 1) for name, mib in sums.items()}

    def measure(self) -> Meter:
        """Start to measure what is computed."""
        return Meter(self)

    def cpu_seconds(self) -> dict[str, float]:
        """Of all processes until now, by name."""
        sums: defaultdict[str, float] = defaultdict(float)
        for process, name in self._named():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                sums[name] += times.user + times.system
        return dict(sums)

    def _named(self) -> Iterator[tuple[psutil.Process, str]]:
        yield psutil.Process(os.getpid()), "client"
        yield self._root, "longtake serve"
        for process in self._root.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if command := process.cmdline():  # One that has died, and is not waited for, has none.
                    yield process, name_of(command)


class Meter:
    """What has been computed since this was made."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._before, self._at, self._busy = tree.cpu_seconds(), time.monotonic(), _busy_seconds()

    def read(self) -> Usage:
        """Until now."""
        seconds = time.monotonic() - self._at
        used = {name: value - self._before.get(name, 0.0) for name, value in self._tree.cpu_seconds().items()}
        others = max(0.0, _busy_seconds() - self._busy - sum(used.values()))
        cores = {name: round(value / seconds, 3) for name, value in used.items()}
        return Usage(round(seconds, 1), cores, round(others / seconds, 3))


def name_of(command: Sequence[str]) -> str:
    """An actor of Ray by its class, a replica by its deployment, a program by its file."""
    if command[0].startswith(ACTOR):
        return command[0].rpartition(":")[2].partition(".")[0]
    for before, word in itertools.pairwise(command):
        if before == "-m":
            return word.rpartition(".")[2]
        if word.endswith(".py"):
            return Path(word).stem
    return Path(command[0]).name


def anonymous_bytes(pid: int) -> int:
    """Resident memory that is no page of a file. Raises OSError where the process is gone."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)
