"""Managers and real denoisers in one event loop, and the links between them, which can be slow or cut."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import override

from engines.config.presets import preset
from serving.config import ServerConfig
from serving.errors import ReplicaDied, ReplicaLost
from serving.gateway.evacuation import OtherServersByGrpc
from serving.gateway.ownership.metrics import GatewayMetrics, Stage
from serving.gateway.ownership.replica_pool import Replicas
from serving.gateway.session_service import SessionService
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.leases import LeaseConfig
from serving.replication.messages import Role
from serving.replication.register import MemoryRegister
from serving.weights.loader import OpenedModel
from serving.worker.denoiser import Denoiser
from tests.serving.worker.bench import Bench, at_work


@dataclass
class Link:
    """What lies between managers and one replica. Times are in seconds."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    is_cut: bool = False
    is_dead: bool = False
    is_listed: bool = True
    lost_methods: set[str] = field(default_factory=set)
    lost_answers: set[str] = field(default_factory=set)
    """Methods of which the next call is heard, and its answer is not."""
    calls: Counter[str] = field(default_factory=Counter)
    on_their_way: Counter[str] = field(default_factory=Counter)
    """Calls that are not answered yet."""
    random: random.Random = field(default_factory=lambda: random.Random(0))

    async def carry(self, method: str) -> None:
        """A message goes over it, late, or never."""
        if self.is_dead:
            raise ReplicaDied("its replica died")
        await asyncio.sleep(self.delay_s + self.random.uniform(0, self.jitter_s))
        if self.is_cut or method in self.lost_methods or self.random.random() < self.loss:
            await asyncio.sleep(3600)


class LocalPool:
    """A ReplicaPool of denoisers in this event loop."""

    def __init__(self, denoisers: dict[str, Denoiser], links: dict[str, Link]) -> None:
        self.denoisers, self.links = denoisers, links
        self.leaving: set[str] = set()

    async def replicas(self) -> Replicas:
        alive = [name for name, link in self.links.items() if link.is_listed and not link.is_dead]
        staying = [name for name in alive if name not in self.leaving]
        return Replicas(staying, (), [name for name in alive if name in self.leaving])

    async def call(self, replica: str, method: str, *arguments: Any, timeout_s: float) -> Any:
        self.links[replica].on_their_way[method] += 1
        try:
            async with asyncio.timeout(timeout_s):
                return await self._call(replica, method, *arguments)
        except TimeoutError:
            raise ReplicaLost(f"its replica was silent for {timeout_s:g} s") from None
        finally:
            self.links[replica].on_their_way[method] -= 1

    async def _call(self, replica: str, method: str, *arguments: Any) -> Any:
        link = self.links[replica]
        link.calls[method] += 1
        await link.carry(method)
        answer = await answered(self.denoisers[replica], method, *arguments)
        await link.carry(method)
        if method in link.lost_answers:
            link.lost_answers.remove(method)
            raise ReplicaLost("its replica was lost as it answered")
        return answer

    async def stream(self, replica: str, method: str, *arguments: Any, silence_s: float) -> AsyncGenerator[Any]:
        link = self.links[replica]
        if method == "subscribe":
            attempt, role, *rest = arguments
            arguments = (attempt, Role(role), *rest)
        async with aclosing(getattr(self.denoisers[replica], method)(*arguments)) as items:
            while True:
                try:
                    async with asyncio.timeout(silence_s):
                        await link.carry(method)
                        item = await anext(items)
                except TimeoutError:
                    raise ReplicaLost(f"its replica was silent for {silence_s:g} s") from None
                except StopAsyncIteration:
                    return
                except ReplicaLost:
                    if link.is_dead:
                        raise ReplicaDied("its replica died") from None
                    raise
                yield item


async def answered(denoiser: Denoiser, method: str, *arguments: Any) -> Any:
    """What a replica answers: as `DenoiserReplica`, without Ray."""
    if method == "room":
        return denoiser.free
    if method == "prepare":
        attempt, spec, cues, resume, epoch, owner, within_s = arguments
        return await denoiser.prepare(attempt, spec, cues, resume, epoch=epoch, owner=owner, within_s=within_s)
    if method == "command":
        attempt, data, steers = arguments
        return (await denoiser.command(attempt, pb.Command.FromString(data), steers=steers)).SerializeToString()
    if method == "save":
        saved = await denoiser.save(*arguments)
        return saved.session.SerializeToString(), saved.stream
    if method == "end_recording":
        attempt, ended = arguments
        return await denoiser.end_recording(attempt, pb.Recording.FromString(ended))
    found = getattr(denoiser, method)(*arguments)
    answer = await found if asyncio.iscoroutine(found) else found
    if method in ("describe", "applied_cues", "pending_cues"):
        return answer.SerializeToString()
    return [session.SerializeToString() for session in answer] if method == "sessions_of" else answer


@dataclass
class Counts(GatewayMetrics):
    """What managers have counted."""

    nbytes: int = 0
    frames: int = 0
    failovers: list[tuple[Stage, bool]] = field(default_factory=list)

    @override
    def sent(self, nbytes: int) -> None:
        self.nbytes += nbytes

    @override
    def skipped(self, frames: int) -> None:
        self.frames += frames

    @override
    def failed_over(self, stage: Stage, *, planned: bool) -> None:
        self.failovers.append((stage, planned))


@dataclass
class Cluster:
    """Denoisers `a`, `b`, ... and managers over one register."""

    benches: dict[str, Bench]
    pool: LocalPool
    links: dict[str, Link]
    register: MemoryRegister
    managers: list[SessionService]
    leaving: set[str]
    """Replicas that are being taken away."""
    gone: list[SessionService]
    """Managers that have died."""
    counts: Counts

    def owner_of(self, session_id: str) -> str:
        """The replica whose copy has a lease."""
        (found,) = self.leased(session_id)
        return found

    def leased(self, session_id: str) -> list[str]:
        """All replicas that have a copy with a lease."""
        return [
            name for name, bench in self.benches.items()
            for copy in bench.denoiser._copies.all
            if copy.id == session_id and bench.denoiser._copies.has_lease(copy)
        ]  # fmt: skip

    def copies(self) -> dict[str, int]:
        """How many copies each replica has."""
        return {name: len(bench.denoiser._copies.all) for name, bench in self.benches.items()}

    async def kill_manager(self, manager: SessionService) -> None:
        """The manager's process dies, and Ray says so."""
        self.gone.append(manager)
        await manager.stop()

    async def kill(self, name: str) -> None:
        """The replica's process dies, and a live node says so."""
        self.links[name].is_dead = True
        await self.benches[name].denoiser.stop()

    async def lose(self, name: str) -> None:
        """The replica's node is lost, and nobody says so of its process."""
        self.links[name].is_cut, self.links[name].is_listed = True, False
        await self.benches[name].denoiser.stop()


@asynccontextmanager
async def cluster(
    pocket: OpenedModel, folder: Path, *, replicas: str = "ab", managers: int = 1, slots: int = 2,
    lease_s: float = 1.0, prepare_timeout_s: float = 5.0, others: OtherServersByGrpc | None = None,
    **settings: Any,
) -> AsyncIterator[Cluster]:  # fmt: skip
    register, leases = MemoryRegister(), LeaseConfig(lease_s, prepare_timeout_s)
    config = ServerConfig(leases=leases, recordings=folder, model="pocket", **settings)
    async with AsyncExitStack() as stack:
        benches = {
            name: await stack.enter_async_context(
                at_work(
                    pocket,
                    slots,
                    register=register,
                    leases=leases,
                    renews=False,
                    replica=name,
                    viewers=config.limits.viewers_per_session,
                    replay_s=config.limits.replay_seconds,
                    suspend_after_s=config.suspend_after,
                )
            )
            for name in replicas
        }
        links = {name: Link() for name in replicas}
        gone: list[SessionService] = []
        pool = LocalPool({name: bench.denoiser for name, bench in benches.items()}, links)
        model, counts = preset("pocket"), Counts()

        async def there() -> list[str]:
            return [service._failover.manager for service in services if service not in gone]

        services = [
            SessionService(pool, register, config, model, f"manager {number}", there, counts, others)
            for number in range(managers)
        ]
        for service in services:
            service.start()
            stack.push_async_callback(service.stop)
        yield Cluster(benches, pool, links, register, services, pool.leaving, gone, counts)


async def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)
