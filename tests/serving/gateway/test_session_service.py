"""What the managers do between clients and replicas, with replicas that are slow where it hurts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engines.config.presets import preset
from serving.auth import Caller
from serving.config import ServerConfig
from serving.errors import InvalidRequest, LimitReached, ReplicaLost
from serving.gateway.ownership.replica_pool import Replicas
from serving.gateway.session_service import SessionService
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.messages import Item
from serving.replication.register import MemoryRegister, Owner

STATE = Item(pb.Event(state=pb.Session(id="one")).SerializeToString())


class SlowReplica:
    """One session, followed only a while after that has been asked for; it can be followed `streams` times."""

    def __init__(self, streams: int) -> None:
        self.said: list[str] = []
        self._left = streams

    async def replicas(self) -> Replicas:
        return Replicas(())

    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[Item]:
        await asyncio.sleep(0.05)
        self.said.append("follows")
        yield STATE
        await asyncio.sleep(0.05)
        self._left -= 1
        self.said.append("gone")
        if self._left:
            raise ReplicaLost("it died")

    async def call(self, *_: Any, **__: Any) -> bytes:
        self.said.append("commanded")
        return pb.Receipt().SerializeToString()


async def commands(said: list[str], before: str | None) -> AsyncIterator[pb.Command]:
    """To attach, and then a command once `before` has happened."""
    yield pb.Command(attach=pb.Attach(session_id="one"))
    while before is not None and before not in said:
        await asyncio.sleep(0.001)
    yield pb.Command(start=pb.Start())
    await asyncio.sleep(10)


def interact(folder: Path, streams: int, before: str | None) -> list[str]:
    """What happened to the session of a controller, in its order."""
    replica: Any = SlowReplica(streams)

    async def run() -> None:
        register, config = MemoryRegister(), ServerConfig(recordings=folder)
        await register.create("one", 1, Owner("here", "attempt", "another"))
        sessions = SessionService(replica, register, config, preset("pocket").stream, "manager")
        async for _ in sessions.interact(commands(replica.said, before), Caller("")):
            pass

    asyncio.run(run())
    said: list[str] = replica.said
    return said


def test_a_command_waits_until_its_receipt_would_be_heard(tmp_path: Path) -> None:
    assert interact(tmp_path, 1, None) == ["follows", "commanded", "gone"]


def test_a_command_for_a_session_that_moves_waits_until_it_is_followed_again(tmp_path: Path) -> None:
    assert interact(tmp_path, 2, "gone") == ["follows", "gone", "follows", "commanded", "gone"]


def service(folder: Path, **options: Any) -> SessionService:
    """Of a server on which no session can be opened: there is no denoiser."""
    config = ServerConfig(recordings=folder, **options)
    nobody: Any = SlowReplica(1)
    return SessionService(nobody, MemoryRegister(), config, preset("pocket").stream, "manager")


def opening(sessions: SessionService, height: int, width: int) -> type[Exception] | None:
    """How the opening of a session with such pictures ends."""
    options = pb.SessionOptions(height=height, width=width)
    try:
        asyncio.run(sessions.create(pb.CreateSessionRequest(options=options), Caller("")))
    except (InvalidRequest, LimitReached, ReplicaLost) as error:
        return type(error)
    return None


def test_where_sizes_are_declared_there_are_no_others(tmp_path: Path) -> None:
    sessions = service(tmp_path, sizes=((64, 96), (160, 96)))
    found = asyncio.run(sessions.describe_server(Caller("")))
    assert [(size.height, size.width) for size in found.sizes] == [(96, 160), (64, 96), (160, 96)]
    assert not found.other_sizes
    assert opening(sessions, 160, 96) is ReplicaLost
    with pytest.raises(
        InvalidRequest, match="128x208, height by width, are not served here; 96x160, 64x96, 160x96"
    ):
        sessions._spec("one", pb.SessionOptions(height=128, width=208), Caller(""))


def test_where_none_are_declared_every_size_within_the_limit_is_served(tmp_path: Path) -> None:
    sessions = service(tmp_path)
    assert asyncio.run(sessions.describe_server(Caller(""))).other_sizes
    assert opening(sessions, 128, 208) is ReplicaLost
    assert opening(sessions, 1280, 1280) is LimitReached


class Denoiser:
    """Says that it has room, and counts how often it is asked."""

    asked = 0

    async def replicas(self) -> Replicas:
        return Replicas(["one"])

    async def call(self, *_: Any, **__: Any) -> int:
        self.asked += 1
        return 2


def test_whether_the_server_is_there_is_asked_of_its_replicas_once_however_many_want_to_know(
    tmp_path: Path,
) -> None:
    pool: Any = Denoiser()

    async def run() -> None:
        config = ServerConfig(recordings=tmp_path)
        sessions = SessionService(pool, MemoryRegister(), config, preset("pocket").stream, "manager")
        assert all(await asyncio.gather(*(sessions.ready() for _ in range(1000))))

    asyncio.run(run())
    assert pool.asked == 1
