"""Requests with ids, made to several managers of one server."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import CommandIdReused
from serving.gateway.session_service import SessionService
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.register import Owner
from serving.weights.loader import OpenedModel
from tests.serving.gateway.ownership.local_cluster import cluster
from tests.serving.gateway.ownership.scenes import ANNA, run


async def opened(manager: SessionService, seed: int) -> pb.Session:
    """What a client is answered who asks for a session under ids that it uses again and again."""
    options = pb.SessionOptions(height=32, width=48, seed=seed)
    request = pb.CreateSessionRequest(client_id="ann", command_id="1", options=options)
    return await manager.create(request, ANNA)


def test_the_same_request_made_to_another_manager_opens_one_session(pocket: OpenedModel, tmp_path: Path) -> None:
    async def ask() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            first, other = there.managers
            assert (await opened(first, 7)).id == (await opened(other, 7)).id
            assert len(await other.list(ANNA)) == 1

    run(ask())


def test_another_request_under_the_ids_of_one_that_another_manager_granted_is_refused(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def ask() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            first, other = there.managers
            session = await opened(first, 7)
            await there.kill(there.owner_of(session.id))
            with pytest.raises(CommandIdReused, match=f"for another one, which opened the session {session.id}"):
                await opened(other, 8)
            assert (await opened(first, 7)).id == session.id

    run(ask())


def test_a_session_of_which_nobody_says_what_was_asked_for_is_taken_for_the_same(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def of_before(_: object) -> str:
        return "a name of before"

    async def ask() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            first, other = there.managers
            with monkeypatch.context() as before:
                before.setattr("serving.gateway.session_service.attempt_of", of_before)
                session = await opened(first, 7)
            opening = await there.register.first(session.id)
            assert isinstance(opening, Owner)
            assert opening.attempt == "a name of before"
            assert (await opened(other, 7)).id == session.id

    run(ask())
