"""A server left alone with its clients: `longtake serve` as a user starts it, and what happens at its doors."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness.processes import Tree
from benchmarks.soak.disturbances import Disturbances
from benchmarks.soak.viewer import FPS, HEIGHT, WIDTH, Tally, Viewer
from serving.client.aio import AsyncClient
from serving.deployments.server_process import LocalServer, local_server

logger = logging.getLogger(__name__)

SESSIONS = 4
DISK_BYTES = 16 << 20
LOOK_EVERY_S = 10.0
SETTLED_S = 600.0
"""From then on memory must be flat."""

WINDOW_S = 120.0
"""Whose median is compared, at `SETTLED_S` and at the end."""

NOT_COMPARED = {"client", "IDLE", "default_worker"}
"""This program, and the workers that Ray has in store or starts for it, of which there are as many as it likes."""

GROWTH, GROWTH_MIB = 0.05, 8.0
"""More than both is growth: an allocator's arenas come and go."""

PROXY_S = 5.0
"""What a killed proxy may cost a viewer."""

LET_GO_S = 60.0


class Memory(NamedTuple):
    """Of each kind of process, in MiB, so many seconds after the start."""

    seconds: float
    mib: dict[str, float]


class Growth(NamedTuple):
    """Of a kind of process: MiB once settled and at the end, 0 where there was none, and looks that missed it."""

    settled_mib: float
    last_mib: float
    missed: int

    @property
    def is_growth(self) -> bool:
        """Whether it is more than an allocator's arenas make up."""
        return self.last_mib - self.settled_mib > max(GROWTH * self.settled_mib, GROWTH_MIB)


@dataclass(frozen=True)
class DoorsSoak:
    """What one run found out."""

    seed: int
    seconds: float
    has_disk: bool
    tally: Tally
    disturbed: Counter[str]
    proxies_killed: Sequence[float]
    memory: Sequence[Memory]
    sessions_left: int


def soak_doors(minutes: float, seed: int, folder: Path) -> DoorsSoak:
    """Start a server, play, and disturb it for so long."""
    with _disk(folder / "recordings") as has_disk:
        options = ("--slots", str(SESSIONS + 1), "--recordings", str(folder / "recordings"))
        with local_server(options) as server:
            return asyncio.run(_run(server, minutes, seed, folder / "recordings" if has_disk else None))


@contextmanager
def _disk(folder: Path) -> Iterator[bool]:
    """A small file system in memory, if that is allowed here; whether it is."""
    folder.mkdir()
    mounted = subprocess.run(
        ("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)),
        check=False,
        capture_output=True,
    )
    if mounted.returncode != 0:
        logger.warning("no full disks: %s", mounted.stderr.decode().strip())
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(("umount", "--lazy", str(folder)), check=True)


async def _run(server: LocalServer, minutes: float, seed: int, disk: Path | None) -> DoorsSoak:
    tally, tree, began, memory = Tally(), Tree(server.pid), time.monotonic(), []
    async with AsyncClient(server.address) as client:
        forking = asyncio.Semaphore(1)
        viewers = [Viewer(client, number, seed, tally, forking) for number in range(SESSIONS)]
        playing = [asyncio.create_task(viewer.run()) for viewer in viewers]
        disturbances = Disturbances(
            server, lambda: [viewer.session_id for viewer in viewers if viewer.session_id is not None], seed, disk
        )
        disturbing = asyncio.create_task(disturbances.run())
        while (now := time.monotonic() - began) < 60 * minutes and not disturbing.done():
            memory.append(Memory(round(now, 1), await asyncio.to_thread(tree.memory_mib)))
            await asyncio.sleep(LOOK_EVERY_S)
        if disturbing.done():
            disturbing.result()
        disturbing.cancel()
        await asyncio.gather(disturbing, return_exceptions=True)
        for viewer in viewers:
            viewer.stop()
        async with asyncio.timeout(LET_GO_S):
            await asyncio.gather(*playing)
        left = len(await client.list())
    return DoorsSoak(
        seed, time.monotonic() - began, disk is not None, tally, disturbances.done, disturbances.proxies_killed,
        memory, left,
    )  # fmt: skip


def waits_for_a_proxy(gaps: Sequence[tuple[float, float]], killed: Sequence[float]) -> list[float]:
    """The longest wait for a chunk that each killed proxy fell into; `gaps` are ends and lengths."""
    during = [[seconds for end, seconds in gaps if end - seconds <= at <= end] for at in killed]
    return [max(waits) for waits in during if waits]


def growth(memory: Sequence[Memory]) -> dict[str, Growth]:
    """Of each kind of process. Empty in a short run."""
    end = memory[-1].seconds
    if end < SETTLED_S + 2 * WINDOW_S:
        return {}
    settled = [look.mib for look in memory if SETTLED_S <= look.seconds < SETTLED_S + WINDOW_S]
    last = [look.mib for look in memory if look.seconds >= end - WINDOW_S]
    names = set[str]().union(*settled, *last) - NOT_COMPARED
    return {
        name: Growth(
            _median(settled, name), _median(last, name), sum(name not in mib for mib in (*settled, *last))
        )
        for name in sorted(names)
    }


def _median(looks: Sequence[dict[str, float]], name: str) -> float:
    there = [mib[name] for mib in looks if name in mib]
    return round(float(np.median(there)), 1) if there else 0.0


def doors_summary(soak: DoorsSoak) -> dict[str, Any]:
    """Everything but the samples of waits."""
    tally = soak.tally
    waits = [seconds for _, seconds in tally.gaps]
    return {
        "seed": soak.seed,
        "seconds": round(soak.seconds),
        "sessions": {"paced": SESSIONS, "opened": tally.sessions},
        "pictures": {"fps": FPS, "height": HEIGHT, "width": WIDTH},
        "disk_bytes": DISK_BYTES if soak.has_disk else None,
        "disturbances": dict(sorted(soak.disturbed.items())),
        "frames": {"shown": tally.frames, "lost": tally.lost, "doubled": tally.doubled},
        "second_look": asdict(tally.reread),
        "prompts": {"with_receipt": tally.prompts, "lost": tally.prompts_lost},
        "sessions_lost": {"told": tally.told_lost, "silently": tally.silently_lost},
        "films_wrong": tally.films_wrong,
        "wait_for_a_chunk_s": {
            "median": round(float(np.median(waits)), 2), "p99": round(float(np.quantile(waits, 0.99)), 2),
            "longest": round(max(waits), 2),
        },
        "wait_for_a_chunk_when_a_proxy_was_killed_s": [
            round(seconds, 2) for seconds in waits_for_a_proxy(tally.gaps, soak.proxies_killed)
        ],
        "done": dict(sorted(tally.done.items())),
        "refused": dict(sorted(tally.refused.items())),
        "memory": {name: found._asdict() for name, found in growth(soak.memory).items()},
        "memory_samples_mib": [look._asdict() for look in soak.memory[:: max(1, round(60 / LOOK_EVERY_S))]],
        "sessions_left": soak.sessions_left,
    }  # fmt: skip


def doors_violations(soak: DoorsSoak) -> list[str]:
    """What must not be, in words, however busy the machine is."""
    tally = soak.tally
    return _said(
        {
            **tally.wrong(),
            "sessions lost though nothing of them was hit": tally.told_lost + tally.silently_lost,
            "sessions left": soak.sessions_left,
            "processes that are gone": [name for name, at in growth(soak.memory).items() if not at.last_mib],
        }
    )


def missed_marks(soak: DoorsSoak) -> list[str]:
    """What takes more time or memory than it may on a machine that does nothing else, in words."""
    waits = waits_for_a_proxy(soak.tally.gaps, soak.proxies_killed)
    return _said(
        {
            f"waits of more than {PROXY_S:g} s for a killed proxy": [round(s, 1) for s in waits if s > PROXY_S],
            "processes that grew": {name: at for name, at in growth(soak.memory).items() if at.is_growth},
        }
    )


def _said(wrong: dict[str, Any]) -> list[str]:
    return [f"{name}: {value}" for name, value in wrong.items() if value]
