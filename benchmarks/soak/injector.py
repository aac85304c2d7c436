"""Sends faults to the replicas of a server on this machine, and waits until it is whole again."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.harness.replicas import Replica, is_whole, replicas
from benchmarks.soak.faults import DEPLOYMENTS, Fault
from serving.config import ServerConfig
from serving.deployments.routing.kv_register import KvRegister
from serving.replication.register import Owner

logger = logging.getLogger(__name__)


class Placement(NamedTuple):
    """Which replicas have a session's state."""

    denoiser: str
    standby: str


@dataclass
class Injected:
    """A fault as it happened, in seconds of the event loop and of the wall clock.

    `without_standby` are the sessions of which one of the two copies was hit, `at_risk` those that lost both.
    """

    fault: Fault
    pids: list[int]
    at: float
    wall_at: float
    at_risk: list[str]
    without_standby: list[str]
    whole_at: float | None = None


class Injector:
    """Hits replicas at random, or those that have a session's state."""

    def __init__(self, logs: Path, seed: int) -> None:
        self._logs = logs
        self._rng = random.Random(f"victims {seed}")
        self._register = KvRegister()

    async def inject(self, fault: Fault, session_ids: Sequence[str], wall_at: float) -> Injected:
        """Send the fault's signals; returns when a stopped replica goes on again."""
        placed = await self._placements(session_ids)
        victims = self._victims(fault, placed)
        hit = {victim.id for victim in victims}
        injected = Injected(
            fault, [victim.pid for victim in victims], asyncio.get_running_loop().time(), wall_at,
            at_risk=[name for name, at in placed.items() if set(at) <= hit],
            without_standby=[name for name, at in placed.items() if set(at) & hit],
        )  # fmt: skip
        logger.info("%s: %s; at risk: %s", fault.kind, victims, injected.at_risk)
        self._send(victims, signal.SIGKILL if fault.stop_s is None else signal.SIGSTOP)
        if fault.stop_s is not None:
            try:
                await asyncio.sleep(fault.stop_s)
            finally:
                self._send(victims, signal.SIGCONT)
        return injected

    async def _placements(self, session_ids: Sequence[str]) -> dict[str, Placement]:
        found = {}
        for session_id in session_ids:
            top = await self._register.latest(session_id)
            if top is not None and isinstance(top.record, Owner):
                found[session_id] = Placement(top.record.replica, top.record.standby)
        return found

    def _victims(self, fault: Fault, placed: dict[str, Placement]) -> list[Replica]:
        there = replicas(self._logs)
        if fault.may_lose_sessions and placed:
            both = self._rng.choice(list(placed.values()))
            return [replica for replica in there if replica.id in both]
        return [
            self._rng.choice([replica for replica in there if replica.deployment == name])
            for name in fault.deployments
        ]

    def _send(self, victims: Sequence[Replica], number: signal.Signals) -> None:
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(victim.pid).send_signal(number)


async def wait_until_healthy(logs: Path, config: ServerConfig) -> None:
    """Wait until every deployment has all its replicas."""
    while not await asyncio.to_thread(_is_healthy, logs, config):
        await asyncio.sleep(0.3)


def _is_healthy(logs: Path, config: ServerConfig) -> bool:
    """As the system sees it and as Serve does, which takes a while to notice that a process is gone."""
    wanted = dict(
        zip(DEPLOYMENTS, (config.denoisers, config.decoders, config.text_encoders, config.managers), strict=True)
    )
    there = Counter(replica.deployment for replica in replicas(logs))
    return all(there[name] >= wanted[name] for name in DEPLOYMENTS) and is_whole()
