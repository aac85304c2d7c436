"""What happens at the doors of a server: clients that come and go or are killed, a full disk, a killed proxy."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import psutil

from serving.client.aio import AsyncClient
from serving.deployments.server_process import LocalServer
from serving.errors import SessionError

logger = logging.getLogger(__name__)

WATCHERS, WATCH_S = 5, 8.0
UNREAD_S = 3.0
FULL_S = 4.0
PAUSE_S = (2.0, 8.0)
PROXY_EVERY = 3
"""One round of so many kills the proxy: every client is without a server until there is a new one."""


class Disturbances:
    """Does one thing after the other to a server, in an order that a seed decides, and counts them.

    `sessions` says whose sessions play. `disk` is a file system of its own, which recordings are written to; None
    leaves it alone.
    """

    def __init__(
        self, server: LocalServer, sessions: Callable[[], list[str]], seed: int, disk: Path | None
    ) -> None:
        self._server, self._sessions, self._disk = server, sessions, disk
        self._rng = random.Random(f"doors {seed}")
        self.done: Counter[str] = Counter()
        self.proxies_killed: list[float] = []
        """When, in seconds of the event loop."""

    async def run(self) -> None:
        """Until it is cancelled."""
        kinds: list[Callable[[], Awaitable[None]]] = [self.watchers, self.killed_clients]
        if self._disk is not None:
            kinds.append(self.full_disk)
        for number in itertools.count(1):
            proxy = [self.killed_proxy] if number % PROXY_EVERY == 0 else []
            for kind in self._rng.sample([*kinds, *proxy], len(kinds) + len(proxy)):
                await asyncio.sleep(self._rng.uniform(*PAUSE_S))
                await kind()
                self.done[kind.__name__] += 1

    async def watchers(self) -> None:
        """Several come to one session, watch for a while, and go."""
        session = self._session()
        if session is None:
            return
        async with AsyncClient(self._server.address) as client:
            await asyncio.gather(*(self._watch(client, session) for _ in range(WATCHERS)))

    async def _watch(self, client: AsyncClient, session: str) -> None:
        with suppress(TimeoutError, SessionError):
            async with asyncio.timeout(WATCH_S):
                async for _ in client.watch(session):
                    pass

    async def killed_clients(self) -> None:
        """One over gRPC and one over the page begin to watch, read nothing, and are killed."""
        session = self._session()
        if session is None:
            return
        where = {"grpc": self._server.address, "page": self._server.page}
        clients = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "benchmarks.soak.unread_client", kind, address, session,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )
            for kind, address in where.items()
        ]  # fmt: skip
        try:
            for client in clients:
                assert client.stdout is not None
                await client.stdout.readline()
            await asyncio.sleep(UNREAD_S)
        finally:
            for client in clients:
                with suppress(ProcessLookupError):
                    client.kill()
        for client in clients:
            await client.wait()

    async def full_disk(self) -> None:
        """Nothing more can be written to the disk for a while."""
        assert self._disk is not None
        filler = self._disk / "filler"
        try:
            await asyncio.to_thread(_fill, filler)
            await asyncio.sleep(FULL_S)
        finally:
            filler.unlink(missing_ok=True)

    async def killed_proxy(self) -> None:
        """The process is killed that all clients are connected to."""
        for process in psutil.Process(self._server.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "ProxyActor" in " ".join(process.cmdline()):
                    logger.info("proxy %d killed", process.pid)
                    process.kill()
                    self.proxies_killed.append(asyncio.get_running_loop().time())

    def _session(self) -> str | None:
        there = self._sessions()
        return self._rng.choice(there) if there else None


def _fill(path: Path) -> None:
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
