"""What the managers do between clients and replicas, with replicas that are slow where it hurts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from engines.config.presets import preset
from serving.auth import Caller, Tokens
from serving.config import Limits, ServerConfig
from serving.errors import InvalidRequest, LimitReached, ReplicaLost
from serving.gateway import session_service
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
        await asyncio.sleep(0.5)
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


async def manager(folder: Path, replica: Any, **limits: int) -> SessionService:
    """That is asked about the session of a replica."""
    register, config = MemoryRegister(), ServerConfig(recordings=folder, limits=Limits(**limits))
    await register.create("one", 1, Owner("here", "attempt", "another"))
    return SessionService(replica, register, config, preset("pocket"), "manager")


def interact(folder: Path, streams: int, before: str | None) -> list[str]:
    """What happened to the session of a controller, in its order."""
    replica: Any = SlowReplica(streams)

    async def run() -> None:
        sessions = await manager(folder, replica)
        async for _ in sessions.interact(commands(replica.said, before), Caller("")):
            pass

    asyncio.run(run())
    said: list[str] = replica.said
    return said


def test_a_command_waits_until_its_receipt_would_be_heard(tmp_path: Path) -> None:
    assert interact(tmp_path, 1, None) == ["follows", "commanded", "gone"]


def test_a_command_for_a_session_that_moves_waits_until_it_is_followed_again(tmp_path: Path) -> None:
    assert interact(tmp_path, 2, "gone") == ["follows", "gone", "follows", "commanded", "gone"]


class Denoisers:
    """Say that they have room, but the first `lost` ones, and count how often they are asked."""

    def __init__(self, count: int, lost: int = 0) -> None:
        self.asked = 0
        self._names = [str(number) for number in range(count)]
        self._lost = self._names[:lost]

    async def replicas(self) -> Replicas:
        return Replicas(self._names)

    async def call(self, replica: str, *_: Any, **__: Any) -> int:
        self.asked += 1
        if replica in self._lost:
            raise ReplicaLost("it died")
        return 0


def is_ready(folder: Path, denoisers: Denoisers, times: int = 1) -> bool:
    """What a manager says, to so many at once."""
    pool: Any = denoisers

    async def run() -> bool:
        config = ServerConfig(recordings=folder)
        sessions = SessionService(pool, MemoryRegister(), config, preset("pocket"), "manager")
        (answer,) = set(await asyncio.gather(*(sessions.ready() for _ in range(times))))
        return answer

    return asyncio.run(run())


def test_whether_the_server_is_there_is_asked_of_its_replicas_once_however_many_want_to_know(
    tmp_path: Path,
) -> None:
    assert is_ready(tmp_path, one := Denoisers(1), times=1000)
    assert one.asked == 1


def test_whether_a_large_server_is_there_few_of_its_replicas_are_asked(tmp_path: Path) -> None:
    assert is_ready(tmp_path, whole := Denoisers(64))
    assert is_ready(tmp_path, hurt := Denoisers(64, lost=3))
    assert (whole.asked, hurt.asked) == (2, 4)


def test_a_server_without_a_replica_that_answers_is_not_there(tmp_path: Path) -> None:
    assert not is_ready(tmp_path, Denoisers(0))
    assert not is_ready(tmp_path, Denoisers(4, lost=4))


@pytest.mark.parametrize("has_tokens", [True, False])
def test_sessions_are_asked_of_those_replicas_alone_that_have_them(tmp_path: Path, has_tokens: bool) -> None:
    asked: list[str] = []

    class Holders(Denoisers):
        """Each has a session of its name."""

        async def call(self, replica: str, *_: Any, **__: Any) -> Any:
            asked.append(replica)
            return [pb.Session(id=f"session {replica}").SerializeToString()]

    pool: Any = Holders(64)

    async def run() -> list[str]:
        register = MemoryRegister()
        for replica, caller in (("3", "anna"), ("40", "anna"), ("41", "berta")):
            await register.reserve(caller, f"session {replica}", 8)
            await register.create(f"session {replica}", 1, Owner(replica, "attempt", "another"))
        await register.reserve("anna", "being opened", 8)
        config = ServerConfig(recordings=tmp_path, tokens=Tokens({"anna": "digest"} if has_tokens else {}))
        sessions = SessionService(pool, register, config, preset("pocket"), "manager")
        return [session.id for session in await sessions.list(Caller("anna"))]

    replicas = ["3", "40"] if has_tokens else ["3", "40", "41"]
    assert sorted(asyncio.run(run())) == [f"session {replica}" for replica in replicas]
    assert sorted(asked) == replicas


LARGE = "x" * (1 << 20)

TOO_LARGE: dict[str, Callable[[SessionService], Awaitable[object]]] = {
    "command": lambda sessions: sessions.command(
        "one", pb.Command(schedule_prompt=pb.Cue(prompts=[pb.WeightedPrompt(text=LARGE)])), Caller("")
    ),
    "cues": lambda sessions: sessions.create(
        pb.CreateSessionRequest(cues=[pb.Cue(prompts=[pb.WeightedPrompt(text=LARGE)])] * 16), Caller("")
    ),
    "snapshot": lambda sessions: sessions.restore(
        pb.RestoreSessionRequest(snapshot=LARGE.encode() + b"x", client_id="ann", command_id="1"), Caller("")
    ),
}


@pytest.mark.parametrize("asked", TOO_LARGE)
def test_a_request_that_is_too_large_is_refused_before_anything_is_made_of_it(tmp_path: Path, asked: str) -> None:
    replica = SlowReplica(1)

    async def refused() -> None:
        sessions = await manager(tmp_path, replica, snapshot_bytes=1 << 20)
        with pytest.raises((InvalidRequest, LimitReached), match=r"has \d+ bytes; at most (1048576|16777216) are"):
            await TOO_LARGE[asked](sessions)
        assert len(sessions._requests) == 0

    asyncio.run(refused())
    assert replica.said == []


def test_snapshots_take_no_more_threads_than_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, most = list[bytes](), list[int]()

    def slow(snapshot: bytes) -> None:
        under_way.append(snapshot)
        time.sleep(0.02)
        most.append(len(under_way))
        under_way.remove(snapshot)
        raise InvalidRequest("no snapshot")

    async def restored() -> None:
        sessions = await manager(tmp_path, SlowReplica(1))
        asked = (sessions.restore(pb.RestoreSessionRequest(snapshot=b"x"), Caller("")) for _ in range(8))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(answer) for answer in answers} == {InvalidRequest}

    monkeypatch.setattr(session_service, "unpack", slow)
    asyncio.run(restored())
    assert max(most) == session_service.SNAPSHOTS_AT_ONCE
