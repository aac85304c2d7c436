"""One soak: a server, paced sessions, faults one after the other, and what is left at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray import serve

from benchmarks.harness.holdings import Holdings, Room, holdings, rooms
from benchmarks.harness.replicas import joined_server, log_lines
from benchmarks.soak.faults import plan
from benchmarks.soak.injector import Injected, Injector, wait_until_healthy
from benchmarks.soak.viewer import Tally, Viewer
from serving.client.aio import AsyncClient
from serving.config import Limits, ServerConfig
from serving.deployments.replicas.video_decoder import ABANDONED_S
from serving.deployments.server_process import free_ports
from serving.protocol.requests import APPLICATION

logger = logging.getLogger(__name__)

DENOISERS, OTHERS = 3, 2
FORKS = 1
"""At a time; they need a slot as well."""

NOTICED_S = 3.0
"""How long Serve may take to notice that a replica is gone."""

WHOLE_S = 180.0
"""How long a server may take to be whole again."""

IDLE_S = 10.0
PEACE_S = 15.0
STANDBY_FULL = "standby copy is full"


@dataclass(frozen=True)
class Soak:
    """All that one run found out."""

    seed: int
    sessions: int
    tally: Tally
    injected: Sequence[Injected]
    standby_back: Sequence[tuple[str, float]]
    never_whole: Sequence[str]
    rooms: Sequence[Room]
    sessions_left: int
    before: Sequence[Holdings]
    after: Sequence[Holdings]
    seconds: float


def soak(kills: int, sessions: int, seed: int, folder: Path) -> Soak:
    """Start a server, play, hit it `kills` times, and look at what is left."""
    slots = -(-(sessions + FORKS) // (DENOISERS - 1))
    ports = free_ports()
    config = ServerConfig(
        stages="separate", slots=slots, denoisers=DENOISERS, decoders=OTHERS, text_encoders=OTHERS,
        managers=OTHERS, grpc_port=ports.grpc, http_port=ports.http, metrics_port=ports.metrics, recordings=folder,
        limits=Limits(sessions_per_token=1024),
    )  # fmt: skip
    with joined_server(config) as running:
        logger.info("logs: %s", running.logs)
        return asyncio.run(_Run(config, running.logs, kills, sessions, seed).run())


class _Run:
    def __init__(self, config: ServerConfig, logs: Path, kills: int, sessions: int, seed: int) -> None:
        self._config, self._logs = config, logs
        self._kills, self._sessions, self._seed = kills, sessions, seed
        self._address = f"127.0.0.1:{config.grpc_port}"
        self._tally = Tally()
        self._viewers: list[Viewer] = []
        self._never_whole: list[str] = []

    async def run(self) -> Soak:
        began = time.monotonic()
        await self._play(0, Tally())
        before = await self._idle()
        injected = await self._play(self._kills, self._tally)
        after = await self._idle()
        left_open = await self._rooms()
        async with AsyncClient(self._address) as client:
            left = len(await client.list())
        return Soak(
            self._seed, self._sessions, self._tally, injected, list(_standbys_back(self._logs, injected)),
            self._never_whole, left_open, left, before, after,
            time.monotonic() - began,
        )  # fmt: skip

    async def _play(self, kills: int, tally: Tally) -> list[Injected]:
        """Faults among sessions that play; in peace before the first, and after the last."""
        async with AsyncClient(self._address) as client:
            forking = asyncio.Semaphore(FORKS)
            viewers = [Viewer(client, n, self._seed, tally, forking) for n in range(self._sessions)]
            self._viewers, playing = viewers, [asyncio.create_task(viewer.run()) for viewer in viewers]
            try:
                await asyncio.sleep(PEACE_S)
                injected = await self._inject_all(kills)
                await asyncio.sleep(PEACE_S)
            finally:
                for viewer in viewers:
                    viewer.stop()
                async with asyncio.timeout(60):
                    await asyncio.gather(*playing)
        return injected

    async def _inject_all(self, kills: int) -> list[Injected]:
        injector, done = Injector(self._logs, self._seed), []
        for number, fault in enumerate(plan(kills, self._seed)):
            playing = [viewer.session_id for viewer in self._viewers if viewer.session_id is not None]
            hit = await injector.inject(fault, playing, time.time())
            done.append(hit)
            await asyncio.sleep(NOTICED_S)
            try:
                async with asyncio.timeout(WHOLE_S):
                    await wait_until_healthy(self._logs, self._config)
                    await self._settle(hit.at)
                hit.whole_at = asyncio.get_running_loop().time()
                logger.info("%d of %d: whole after %.1f s", number + 1, kills, hit.whole_at - hit.at)
            except TimeoutError:
                self._never_whole.append(f"{number}: {fault.kind}: {serve.status().applications[APPLICATION]}")
                logger.error("not whole: %s", self._never_whole[-1])
        return done

    async def _settle(self, since: float) -> None:
        await asyncio.gather(*(viewer.settle(since) for viewer in self._viewers))

    # What is left

    async def _rooms(self) -> list[Room]:
        """Once all are empty, or after as long as a decoder keeps what a dead denoiser had there."""
        until = time.monotonic() + 2 * ABANDONED_S
        while True:
            found = await rooms(self._config, self._logs)
            if all(room.free == room.of for room in found) or time.monotonic() > until:
                return found
            await asyncio.sleep(1)

    async def _idle(self) -> list[Holdings]:
        await asyncio.sleep(IDLE_S)
        return holdings(self._logs)


def _standbys_back(logs: Path, injected: Sequence[Injected]) -> list[tuple[str, float]]:
    """For each session of which a copy was hit: the kind of fault, and the seconds until there were two again.

    A stopped replica that went on in time keeps what it has; of its sessions there is nothing in the logs.
    """
    said = (line for line in log_lines(logs, "SessionManager") if line["message"] == STANDBY_FULL)
    full = sorted((line["timestamp_ns"] / 1e9, str(line["session"])) for line in said)
    found = []
    for number, hit in enumerate(injected):
        until = injected[number + 1].wall_at if number + 1 < len(injected) else float("inf")
        for session in set(hit.without_standby) - set(hit.at_risk):
            if (
                at := next((at for at, of in full if of == session and hit.wall_at < at < until), None)
            ) is not None:
                found.append((hit.fault.kind, at - hit.wall_at))
    return found
