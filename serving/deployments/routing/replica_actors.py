"""Ray's actors behind the replicas of a deployment: which there are, and whether one has died."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import ray
from cachetools import LRUCache
from ray.exceptions import ActorDiedError, RayActorError, RayError
from ray.serve.handle import DeploymentHandle
from ray.util import list_named_actors

from serving.errors import ReplicaLost

PROCESS_DIED = "its worker process has died"
"""What Ray says of an actor whose node lives and reports its process dead; of a lost node it says otherwise."""

DEATH_KNOWN_S = 2.0
"""How long after the end of a connection Ray may take to say that the process is dead."""

REMEMBERED = 256
"""Actors that can be asked after when their name is gone, as it is once they are dead."""


class ReplicaActors:
    """The actors of one deployment's replicas, by the replicas' ids."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._prefix = f"SERVE_REPLICA::{handle.app_name}#{handle.deployment_name}#"
        self._actors: LRUCache[str, Any] = LRUCache(REMEMBERED)

    async def ids(self) -> list[str]:
        """Of all that have not died. Raises ReplicaLost where Ray does not say."""
        try:
            return await asyncio.to_thread(self._look)
        except RayError as error:
            raise ReplicaLost(f"Ray does not say which replicas there are: {error}") from error

    async def died(self, replica: str) -> bool:
        """Whether a node that lives says that the process is dead; where nothing is known, False."""
        if (actor := self._actors.get(replica)) is None:
            return False
        try:
            async with asyncio.timeout(DEATH_KNOWN_S):
                await _ready(actor)
        except ActorDiedError as error:
            return PROCESS_DIED in str(error)
        except (RayActorError, TimeoutError):
            return False
        return False

    def _look(self) -> list[str]:
        named = list_named_actors(all_namespaces=True)
        here = [found for found in named if found["name"].startswith(self._prefix)]
        ids = {found["name"].removeprefix(self._prefix): found for found in here}
        for replica in ids.keys() - self._actors.keys():
            # It may have died since.
            with suppress(ValueError):
                self._actors[replica] = ray.get_actor(ids[replica]["name"], ids[replica]["namespace"])
        return list(ids)


async def _ready(actor: Any) -> None:
    await actor.__ray_ready__.remote()
