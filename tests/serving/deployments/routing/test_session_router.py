"""Which replicas the router tries."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID

from serving.deployments.routing.session_router import SessionRouter

DENOISERS = DeploymentID("Denoiser", "longtake")


def replica(name: str, *sessions: str) -> Any:
    """What a router knows of a replica, as it last reported."""
    return SimpleNamespace(replica_id=ReplicaID(name, DENOISERS), routing_stats={"sessions": sessions})


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


def test_what_is_about_no_session_goes_anywhere() -> None:
    assert tried(router(), [replica("a"), replica("b", "film")], request("/")) == [["a", "b"]]


def test_a_session_is_asked_for_at_its_owner_alone() -> None:
    replicas = [replica("a"), replica("b")]
    assert tried(router(), replicas, request("b/film")) == [["b"]]


def test_a_session_whose_owner_is_unknown_is_asked_for_where_it_was_reported() -> None:
    replicas = [replica("a"), replica("b", "film")]
    assert tried(router(), replicas, request("/film")) == [["b"]]


def test_a_replica_that_is_taken_away_keeps_its_sessions_and_gets_no_new_one() -> None:
    async def after_a_leaves() -> tuple[list[list[Any]], list[list[Any]]]:
        made, a, b = router(), replica("a"), replica("b")
        made.update_replicas([a, b])
        made.update_replicas([b])
        there = list(made.curr_replicas.values())
        return await made.choose_replicas(there, request("a/film")), await made.choose_replicas(
            there, request("/")
        )

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
