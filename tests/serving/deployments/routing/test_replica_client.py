"""Which replicas a client knows of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayTaskError
from ray.serve._private.common import DeploymentID, ReplicaID

from serving.deployments.routing import departures
from serving.deployments.routing.replica_client import ReplicaClient
from serving.errors import ReplicaDied, ReplicaLost, Unforeseen
from serving.gateway.ownership.replica_pool import Replicas


def client(deployment: str, *there: str) -> ReplicaClient:
    """Of a deployment whose actors Ray says are `there`."""
    handle: Any = SimpleNamespace(deployment_name=deployment, app_name="longtake", options=lambda **_: None)
    made = ReplicaClient(handle, "video decoder", 1.0)

    async def ids() -> list[str]:
        return list(there)

    made._actors.ids = ids  # type: ignore[method-assign]
    return made


def routed(deployment: str, before: tuple[str, ...], now: tuple[str, ...]) -> None:
    """A router of the deployment has been told who may be chosen."""
    identity = DeploymentID(deployment, "longtake")
    departures.note([ReplicaID(name, identity) for name in before], [ReplicaID(name, identity) for name in now])


def test_before_anything_was_routed_all_actors_are_asked() -> None:
    assert asyncio.run(client("Fresh", "a", "b").replicas()).speaking == ["a", "b"]


def test_a_replica_that_starts_is_not_asked_as_what_names_it_would_reach_another_one() -> None:
    routed("Growing", (), ("c",))
    assert asyncio.run(client("Growing", "c", "starting").replicas()).all == ("c",)


def test_a_replica_that_is_being_taken_away_comes_last() -> None:
    routed("Shrinking", ("d", "e"), ("e",))
    found = asyncio.run(client("Shrinking", "d", "e").replicas())
    assert (found.speaking, found.leaving) == (["e"], ["d"])


def test_a_replica_that_died_is_not_one_that_is_being_taken_away() -> None:
    routed("Dying", ("f", "g", "h"), ("h",))
    there = client("Dying", "g", "h")
    assert [asyncio.run(there.is_leaving(name)) for name in "fgh"] == [False, True, False]


def test_a_replica_whose_device_has_failed_is_lost_and_asked_last() -> None:
    made = client("Broken", "i", "j")
    ray_error: Any = RayTaskError
    error = ray_error("decode", "", torch.AcceleratorError("a device-side assert")).as_instanceof_cause()
    assert isinstance(error, torch.AcceleratorError)

    async def fail() -> None:
        answer = asyncio.get_running_loop().create_future()
        answer.set_exception(error)
        made._begin = lambda *_, **named: answer  # type: ignore[method-assign]
        with pytest.raises(ReplicaLost, match="the device of its video decoder failed: a device-side assert"):
            await made.call("i", "decode", timeout_s=1.0)
        assert await made.replicas() == Replicas(["j"], ["i"], [])

    asyncio.run(fail())


def busy(answers: Awaitable[Any]) -> ReplicaClient:
    """Of a replica that is silent for 0.1 s at the most, and has something to do that takes longer."""
    made = client("Busy", "i")
    made._silence_s = 0.1

    def begin(replica: str, method: str, arguments: Any, *, stream: bool) -> Any:
        return asyncio.sleep(0.3, "done") if method == "decode" else answers

    made._begin = begin  # type: ignore[method-assign]
    return made


def test_a_replica_that_answers_may_take_its_time_over_what_it_does() -> None:
    class Answers:
        def __await__(self) -> Any:
            return asyncio.sleep(0).__await__()

    assert asyncio.run(busy(Answers()).work("i", "decode")) == "done"


def test_a_replica_that_answers_nothing_while_it_works_is_lost() -> None:
    async def decode() -> None:
        await busy(asyncio.get_running_loop().create_future()).work("i", "decode")

    with pytest.raises(ReplicaLost, match="silent"):
        asyncio.run(decode())


@pytest.mark.parametrize("there", [(), ("j",)], ids=["stopped or starting", "silent"])
def test_where_nothing_is_placed_the_stage_is_named_and_what_to_do(there: tuple[str, ...]) -> None:
    nowhere = client("Nowhere", *there)
    nowhere._begin = lambda *_, **__: asyncio.get_running_loop().create_future()  # type: ignore[method-assign]
    with pytest.raises(ReplicaLost, match="no video decoder answers: it is starting, or stopped; try again"):
        asyncio.run(nowhere.place("open"))


def test_what_two_replicas_have_died_of_is_not_asked_of_a_third_one() -> None:
    made, asked = client("Deadly", "k", "l", "m"), list[str]()

    async def call(replica: str, method: str, *_: Any, timeout_s: float) -> int:
        if method == "room":
            return 1
        raise ReplicaDied("its video decoder died")

    made.call = call  # type: ignore[method-assign]
    with pytest.raises(Unforeseen, match="two processes of the video decoder died in open"):
        asyncio.run(made.place("open", tried=asked.append))
    assert len(asked) == 2
