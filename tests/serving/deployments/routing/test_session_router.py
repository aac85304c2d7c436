"""Which replicas the router tries."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID

from serving.deployments.routing import departures
from serving.deployments.routing.session_router import SessionRouter

DENOISERS = DeploymentID("Denoiser", "longtake")


def replica(name: str) -> Any:
    """What a router knows of a replica."""
    return SimpleNamespace(replica_id=ReplicaID(name, DENOISERS))


def router() -> SessionRouter:
    made = SessionRouter(DENOISERS, DeploymentHandleSource.REPLICA)
    made.initialize_state()
    return made


def request(session_id: str) -> Any:
    metadata = SimpleNamespace(session_id=session_id)
    return SimpleNamespace(metadata=metadata, routing_context=SimpleNamespace(should_backoff=False))


def tried(made: SessionRouter, replicas: list[Any], asked: Any) -> list[list[str]]:
    ranks = asyncio.run(made.choose_replicas(replicas, asked))
    return [[found.replica_id.unique_id for found in rank] for rank in ranks]


def test_a_request_that_names_no_replica_goes_anywhere() -> None:
    assert tried(router(), [replica("a"), replica("b")], request("")) == [["a", "b"]]


def test_a_request_goes_to_the_replica_that_it_names_alone() -> None:
    replicas = [replica("a"), replica("b")]
    assert tried(router(), replicas, request("b")) == [["b"]]


def test_a_replica_that_is_taken_away_keeps_its_sessions_and_gets_no_new_one() -> None:
    async def after_a_leaves() -> tuple[list[list[Any]], list[list[Any]]]:
        made, a, b = router(), replica("a"), replica("b")
        made.update_replicas([a, b])
        made.update_replicas([b])
        there = list(made.curr_replicas.values())
        return await made.choose_replicas(there, request("a")), await made.choose_replicas(there, request(""))

    owned, opened = asyncio.run(after_a_leaves())
    assert [[found.replica_id.unique_id for found in rank] for rank in owned] == [["a"]]
    assert [[found.replica_id.unique_id for found in rank] for rank in opened] == [["b"]]


def test_a_replica_that_died_is_out_of_reach() -> None:
    async def after_a_died() -> list[str]:
        made, a, b = router(), replica("a"), replica("b")
        made.update_replicas([a, b])
        made.on_replica_actor_died(a.replica_id)
        made.update_replicas([b])
        return [found.unique_id for found in made.curr_replicas]

    assert asyncio.run(after_a_died()) == ["b"]


def test_that_a_replica_is_being_taken_away_is_known_in_the_process_of_its_router() -> None:
    there = replica("leaving"), replica("staying")
    made = router()

    async def leave() -> None:
        made.update_replicas(list(there))
        assert not departures.has_left("leaving")
        made.update_replicas([there[1]])

    asyncio.run(leave())
    assert departures.has_left("leaving")
    assert not departures.has_left("staying")
    assert departures.staying(DENOISERS) == {"staying"}


def test_of_a_deployment_whose_replicas_are_all_taken_away_none_stays() -> None:
    made = router()

    async def leave() -> None:
        made.update_replicas([replica("last")])
        made.update_replicas([])

    asyncio.run(leave())
    assert departures.has_left("last")
    assert departures.staying(DENOISERS) == frozenset()
