"""The replicas of a deployment, seen from another process: which there are, and how they are called."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextvars import Context
from functools import partial
from typing import Any, NamedTuple, cast

import grpc
import torch
from ray.exceptions import RayActorError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from engines.errors import EngineError
from serving.deployments.routing import departures
from serving.deployments.routing.replica_actors import ReplicaActors
from serving.errors import ReplicaDied, ReplicaLost, ServingError, SlotsFull, Unforeseen
from serving.gateway.ownership.placement import ask_some
from serving.gateway.ownership.ranking import by_room
from serving.gateway.ownership.replica_pool import CALL_S, Replicas, none_answers

logger = logging.getLogger(__name__)

AVOIDED_S = 10.0
"""How long a replica that was silent is not asked again: each question would wait for it."""


class Placed(NamedTuple):
    """What a replica answered, and which."""

    replica: str
    answer: Any


class ReplicaClient:
    """Calls methods of one deployment's replicas. Lost ones, and those whose device has failed, raise ReplicaLost,
    dead ones ReplicaDied.

    `stage` is what one of them is called in messages to clients: they see no replicas.

    A replica that did not answer for `silence_s` counts as silent, as does one whose device has failed. It is
    asked last for a while, or until it answers.

    Requests go over gRPC. Over Ray's own calls a replica would stand still, with all its sessions, at the end of
    each answer until the caller took it, which one that is stopped or cut off never does.
    """

    def __init__(self, handle: DeploymentHandle[Any], stage: str, silence_s: float) -> None:
        self._handle = handle.options(_by_reference=False)
        self._actors = ReplicaActors(handle)
        self._deployment = DeploymentID(handle.deployment_name, handle.app_name)
        self._stage = stage
        self._silence_s = silence_s
        self._silent: dict[str, float] = {}

    async def replicas(self) -> Replicas:
        """By id. Raises ReplicaLost where Ray does not say."""
        there = await self._actors.ids()
        avoided = self._avoided()
        leaving = [replica for replica in there if departures.has_left(replica)]
        # One that starts is not known to the router, which would lead what names it to another one.
        known = departures.staying(self._deployment) or frozenset(there)
        staying = [replica for replica in there if replica not in leaving and replica in known]
        speaking = [replica for replica in staying if replica not in avoided]
        return Replicas(speaking, [replica for replica in staying if replica in avoided], leaving)

    async def is_leaving(self, replica: str) -> bool:
        """Whether Serve takes the replica away, and it lives: of one that died routers are told the same."""
        if not departures.has_left(replica):
            return False
        try:
            return replica in await self._actors.ids()
        except ReplicaLost:
            return False

    async def call(self, replica: str, method: str, *arguments: Any, timeout_s: float) -> Any:
        """What `method` of a replica returns. Raises what it raises."""
        response = self._begin(replica, method, arguments, stream=False)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await _answer(response)
        except TimeoutError:
            raise self._fell_silent(replica, timeout_s) from None
        except Exception as error:
            raise await self._translated(replica, error) from error
        self._silent.pop(replica, None)
        return answer

    async def work(self, replica: str, method: str, *arguments: Any) -> Any:
        """What `method` returns, which may take long. ReplicaLost where the replica meanwhile falls silent."""
        working = asyncio.create_task(self.call(replica, method, *arguments, timeout_s=CALL_S))
        try:
            while not (await asyncio.wait([working], timeout=self._silence_s / 4))[0]:
                await self.call(replica, "room", timeout_s=3 * self._silence_s / 4)
            return working.result()
        finally:
            working.cancel()

    async def stream(self, replica: str, method: str, *arguments: Any, silence_s: float) -> AsyncGenerator[Any]:
        """The items of a streaming method of a replica; ReplicaLost if none comes for `silence_s`."""
        response = self._begin(replica, method, arguments, stream=True)
        items: Any = aiter(cast(Any, response))
        try:
            while True:
                try:
                    async with asyncio.timeout(silence_s):
                        item = await anext(items)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise self._fell_silent(replica, silence_s) from None
                except Exception as error:
                    raise await self._translated(replica, error) from error
                yield item
        finally:
            # A generator that nobody reads would keep its replica from being drained.
            cast(Any, response).cancel()

    async def place(
        self, method: str, *arguments: Any, tried: Callable[[str], None] | None = None, moves: bool = False
    ) -> Placed:
        """Call `method` on the replica that has most room; where that fails, on the next one.

        `tried` is told of each before it is called: one that was silent may do it all the same, later.
        Those that were silent just now, and those that are being taken away, are the last to be asked, and not at
        all where something `moves`. Raises SlotsFull if all are full, ReplicaLost if none answers, and Unforeseen
        if none can, or once two have died of it.
        """
        refused: ServingError = none_answers(self._stage)
        replicas = await self.replicas()
        for among in (replicas.speaking,) if moves else replicas:
            for replica in by_room(await ask_some(self, among, "room")):
                if tried is not None:
                    tried(replica)
                try:
                    answer = await self.work(replica, method, *arguments)
                except (SlotsFull, ReplicaLost, Unforeseen) as error:
                    if isinstance(error, ReplicaDied) and isinstance(refused, ReplicaDied):
                        raise Unforeseen(f"two processes of the {self._stage} died in {method}") from error
                    refused = error
                else:
                    return Placed(replica, answer)
        raise refused

    def _fell_silent(self, replica: str, seconds: float) -> ReplicaLost:
        self._avoid(replica)
        return ReplicaLost(f"its {self._stage} was silent for {seconds:g} s")

    def _avoid(self, replica: str) -> None:
        self._silent[replica] = asyncio.get_running_loop().time()

    def _avoided(self) -> set[str]:
        now = asyncio.get_running_loop().time()
        self._silent = {replica: since for replica, since in self._silent.items() if now < since + AVOIDED_S}
        return set(self._silent)

    async def _translated(self, replica: str, error: Exception) -> Exception:
        """What a call through Serve raised, as one of ours where it is."""
        if isinstance(error, RayTaskError) and isinstance(error.cause, ServingError | EngineError):
            return error.cause
        if isinstance(error, RayTaskError) and isinstance(error.cause, torch.AcceleratorError):
            # Here it would count as a failure of this process's own device.
            self._avoid(replica)
            return ReplicaLost(f"the device of its {self._stage} failed: {error.cause}")
        if isinstance(error, RayActorError | grpc.RpcError):
            if await self._actors.died(replica):
                return ReplicaDied(f"its {self._stage} died")
            return ReplicaLost(f"its {self._stage} is gone or cannot be reached ({type(error).__name__})")
        if isinstance(error, BackPressureError | DeploymentUnavailableError):
            return ReplicaLost(f"no {self._stage} takes requests: {error}")
        return error

    def _begin(self, replica: str, method: str, arguments: tuple[Any, ...], *, stream: bool) -> Any:
        """Send a request that has no parent: Serve routes the calls of one parent request one at a time."""
        handle = self._handle.options(session_id=replica, method_name=method, stream=stream)
        return Context().run(partial(handle.remote, *arguments))


async def _answer(response: Any) -> Any:
    return await response
