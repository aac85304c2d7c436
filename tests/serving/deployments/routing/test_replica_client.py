"""Which replicas a client knows of."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from ray.serve._private.common import DeploymentID, ReplicaID

from serving.deployments.routing import departures
from serving.deployments.routing.replica_client import ReplicaClient


def client(deployment: str, *there: str) -> ReplicaClient:
    """Of a deployment whose actors Ray says are `there`."""
    handle: Any = SimpleNamespace(deployment_name=deployment, app_name="longtake", options=lambda **_: None)
    made = ReplicaClient(handle, 1.0)

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
