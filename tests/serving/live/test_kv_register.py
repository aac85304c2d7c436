"""The register in a real cluster's key-value store, asked by several processes at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_list, _internal_kv_put

from benchmarks.harness.replicas import joined
from serving.deployments.routing import kv_register
from serving.deployments.routing.kv_register import KvRegister, forget_all
from serving.errors import RegisterUnavailable
from serving.replication.register import Ended, EpochRecord, Owner, encode_record, end_session
from tests.serving.live.scenes import children

RACERS = 4
NAMESPACE = "longtake"

HEAD = f"""
import ray
found = ray.init(address="local", num_cpus={RACERS}, include_dashboard=False, log_to_driver=False)
print(found.address_info["gcs_address"], flush=True)
input()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray in a process of its own: what is forked from this one, which has threads of gRPC, may hang."""
    with subprocess.Popen(
        [sys.executable, "-c", HEAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as head:
        assert head.stdout is not None
        address = head.stdout.readline().strip()
        with joined(address):
            yield


@pytest.fixture
def session(cluster: None) -> str:
    return uuid.uuid4().hex


def owner(name: str) -> Owner:
    return Owner(f"replica {name}", f"attempt {name}", f"manager {name}")


class Racer:
    """An actor, in a process of its own."""

    def __init__(self) -> None:
        self._register = KvRegister()

    async def create(self, session: str, epochs: int, name: str) -> list[bool]:
        return [await self._register.create(session, epoch, owner(name)) for epoch in range(1, epochs + 1)]

    async def reserve(self, caller: str, name: str, sessions: int, most: int) -> int:
        """How many of so many sessions at once may be opened; each then begins in the register, or is given up."""
        names = [f"{caller} {name} {number}" for number in range(sessions)]
        won = await asyncio.gather(*(self._register.reserve(caller, session, most) for session in names))
        for session in [session for session, may in zip(names, won, strict=True) if may]:
            await self._register.create(session, 1, owner(name))
        return sum(won)


def test_of_many_processes_that_open_sessions_a_caller_gets_no_more_than_may_be(session: str) -> None:
    racer: Any = ray.remote(num_cpus=0)(Racer)
    racers = [racer.remote() for _ in range(RACERS)]
    asked = [one.reserve.remote(session, str(number), 12, 5) for number, one in enumerate(racers)]
    assert sum(ray.get(asked)) == 5
    for number in range(RACERS):
        for ended in range(12):
            asyncio.run(end_session(KvRegister(), f"{session} {number} {ended}", "deleted"))
    again = [one.reserve.remote(session, f"again {number}", 12, 5) for number, one in enumerate(racers)]
    assert sum(ray.get(again)) == 5


def test_all_processes_of_a_server_name_the_same_cluster_and_the_next_server_another_one(cluster: None) -> None:
    async def name() -> str:
        names = {await KvRegister().cluster() for _ in range(2)}
        (found,) = names
        return found

    before = asyncio.run(name())
    forget_all()
    assert asyncio.run(name()) != before


def test_of_many_processes_one_wins_each_epoch(session: str) -> None:
    racer: Any = ray.remote(num_cpus=0)(Racer)
    racers = [racer.remote() for _ in range(RACERS)]
    epochs = 20
    races = ray.get([one.create.remote(session, epochs, str(number)) for number, one in enumerate(racers)])
    # A racer ahead of the others finds the epochs before its own there, and every epoch created by somebody.
    assert [sum(won) for won in zip(*races, strict=True)] == [1] * epochs
    latest = asyncio.run(KvRegister().latest(session))
    assert latest is not None
    assert latest.epoch == epochs
    for one in racers:
        ray.kill(one)


def test_all_open_sessions_are_found_by_one_listing(session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = list[str]()

    def counted(prefix: str, namespace: str) -> list[bytes]:
        listed.append(prefix)
        return _internal_kv_list(prefix, namespace=namespace)

    async def found() -> dict[str, Owner]:
        register = KvRegister()
        for number in range(3):
            await register.create(f"{session}{number}", 1, owner("a"))
        await register.create(f"{session}0", 2, owner("b"))
        await end_session(register, f"{session}1", "deleted")
        monkeypatch.setattr(kv_register, "_internal_kv_list", counted)
        return await register.open_sessions()

    ours = {name: owner for name, owner in asyncio.run(found()).items() if name.startswith(session)}
    assert ours == {f"{session}0": owner("b"), f"{session}2": owner("a")}
    assert listed == [""]


def test_a_repeated_call_finds_what_it_created(session: str) -> None:
    async def repeat() -> list[bool]:
        register = KvRegister()
        return [await register.create(session, 1, owner(name)) for name in "aab"]

    assert asyncio.run(repeat()) == [True, True, False]


def test_an_epoch_cannot_be_skipped_and_leaves_no_trace(session: str) -> None:
    async def skip() -> list[object]:
        register = KvRegister()
        return [await register.create(session, 2, owner("a")), await register.latest(session)]

    assert asyncio.run(skip()) == [False, None]


def test_the_tenth_epoch_comes_after_the_ninth(session: str) -> None:
    async def latest() -> EpochRecord | None:
        register = KvRegister()
        for epoch in range(1, 12):
            await register.create(session, epoch, owner(str(epoch)))
        return await register.latest(session)

    assert asyncio.run(latest()) == EpochRecord(11, owner("11"))


def test_an_ended_session_is_forgotten_and_gets_no_further_epoch(session: str) -> None:
    async def end() -> list[object]:
        register = KvRegister(keep_s=0)
        await register.create(session, 1, owner("a"))
        await end_session(register, session, "deleted")
        before = await register.latest(session)
        await register.forget_ended()
        return [before, await register.latest(session), await register.create(session, 2, owner("b"))]

    assert asyncio.run(end()) == [EpochRecord(2, Ended()), None, False]


def test_a_living_session_is_not_forgotten(session: str) -> None:
    async def live() -> EpochRecord | None:
        register = KvRegister(keep_s=0)
        await register.create(session, 1, owner("a"))
        await register.forget_ended()
        return await register.latest(session)

    assert asyncio.run(live()) == EpochRecord(1, owner("a"))


def test_a_session_that_is_half_forgotten_is_over(session: str) -> None:
    async def half() -> list[object]:
        register = KvRegister(keep_s=0)
        for epoch in (1, 2):
            await register.create(session, epoch, owner(str(epoch)))
        _internal_kv_del(f"{session}:{1:010d}", namespace=NAMESPACE)
        seen = await register.latest(session)
        await register.forget_ended()
        return [
            seen,
            _internal_kv_put(f"{session}:{2:010d}", encode_record(owner("c")), False, namespace=NAMESPACE),
        ]

    assert asyncio.run(half()) == [None, False]
    _internal_kv_del(f"{session}:{2:010d}", namespace=NAMESPACE)


def test_a_register_that_does_not_answer_is_said_to_be_out_of_reach(session: str) -> None:
    # A cluster of an earlier test may not be quite gone.
    stores = children(lambda process: "gcs_server" in process.name())
    register = KvRegister(timeout_s=0.3)
    for store in stores:
        with suppress(psutil.NoSuchProcess):
            store.suspend()
    try:
        with pytest.raises(RegisterUnavailable):
            asyncio.run(register.create(session, 1, owner("a")))
    finally:
        for store in stores:
            with suppress(psutil.NoSuchProcess):
                store.resume()
    # What was given up is written all the same, and the same call finds it.
    assert asyncio.run(KvRegister().create(session, 1, owner("a")))
