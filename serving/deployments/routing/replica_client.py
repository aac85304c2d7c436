"""The replicas of a pinned deployment, seen from another process: who holds what, and who is lost."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextvars import Context
from functools import partial
from typing import Any, cast

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.util import list_named_actors

from engines.errors import EngineError
from serving.errors import ReplicaLost, ServingError, SessionNotFound, SlotsFull

logger = logging.getLogger(__name__)

REMEMBERED = 10_000
"""Sessions whose replica is remembered; others are asked for."""

ANSWER_S = 1.0
"""How long a question to all replicas waits for each."""

AVOIDED_S = 10.0
"""How long a replica that was silent is not asked again: each question would wait for it."""

TOLD_S = 60.0
"""How long a silent replica may take to hear what it is told. Serve has replaced it long before."""

ANY = "/"
"""The routing key of a request that any replica may take."""


class ReplicaClient:
    """Calls methods of the replica that holds a session, wherever that is. Lost replicas raise ReplicaLost.

    A replica that says nothing for `silence_s` counts as lost.
    """

    def __init__(self, handle: DeploymentHandle[Any], silence_s: float) -> None:
        self._handle = handle
        self._silence_s = silence_s
        self._owners: OrderedDict[str, str] = OrderedDict()
        self._silent: dict[str, float] = {}

    def remember(self, session_id: str, replica: str) -> None:
        """A session is on this replica."""
        self._owners[session_id] = replica
        self._owners.move_to_end(session_id)
        if len(self._owners) > REMEMBERED:
            self._owners.popitem(last=False)

    def owner(self, session_id: str) -> str | None:
        """The replica that a session is thought to be on."""
        return self._owners.get(session_id)

    def forget(self, session_id: str) -> None:
        """A session is not where it was."""
        self._owners.pop(session_id, None)

    async def place(self, session_id: str, method: str, *arguments: Any) -> Any:
        """Call `method` on the replica with most free slots, which are asked; where that fails, on the next one.

        Those that were silent just now are the last to be asked. Raises SlotsFull if all are full, and ReplicaLost
        if none answers.
        """
        refused: ServingError = ReplicaLost("no replica answers")
        for replicas in await self._there():
            rooms: dict[str, int] = dict(await self._ask_each(replicas, "room"))
            # Of equal ones any: two managers that ask at once should not both take the same.
            for replica in sorted(rooms, key=lambda found: (rooms[found], random.random()), reverse=True):
                try:
                    return await self._call(f"{replica}/{session_id}", method, arguments, self._silence_s)
                except (SlotsFull, ReplicaLost) as error:
                    refused = error
        raise refused

    async def anywhere(self, method: str, *arguments: Any) -> Any:
        """Call `method` on the replica that Serve chooses; where one was silent or has died, on another."""
        if not self._avoided():
            try:
                return await self._call(ANY, method, arguments, self._silence_s)
            except ReplicaLost as lost:
                logger.warning("replica left out", extra={"why": str(lost)})
        return await self.place("", method, *arguments)

    async def call(self, session_id: str, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """Call `method` on the replica that holds the session. Raises SessionNotFound, or what it raises."""
        wait = self._silence_s if timeout_s is None else timeout_s
        owner = self._owners.get(session_id, "")
        try:
            return await self._call(f"{owner}/{session_id}", method, (session_id, *arguments), wait)
        except (SessionNotFound, ReplicaLost):
            found = await self.locate(session_id, besides=owner)
            if found is None:
                raise
            return await self._call(f"{found}/{session_id}", method, (session_id, *arguments), wait)

    async def stream(self, session_id: str, method: str, *arguments: Any) -> AsyncGenerator[Any]:
        """The items of a streaming method of the replica that holds the session.

        Raises SessionNotFound; ReplicaLost once the replica is dead or silent.
        """
        if session_id not in self._owners and await self.locate(session_id) is None:
            raise SessionNotFound(f"no session {session_id!r} is here; it may have ended")
        pinned = f"{self._owners[session_id]}/{session_id}"
        response = self._begin(pinned, method, (session_id, *arguments), stream=True)
        items: Any = aiter(cast(Any, response))
        try:
            while True:
                try:
                    async with asyncio.timeout(self._silence_s):
                        item = await anext(items)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise self._fell_silent(pinned, self._silence_s) from None
                except Exception as error:
                    raise _translated(error) from error
                yield item
        finally:
            # A generator that nobody reads would keep its replica from being drained.
            cast(Any, response).cancel()

    async def tell(self, replica: str, method: str, *arguments: Any) -> None:
        """Call `method` of a replica that is silent, for when it speaks again; if it does not, nothing is lost."""
        try:
            await self._call(f"{replica}/", method, arguments, TOLD_S)
        except ReplicaLost as lost:
            logger.info("replica not told", extra={"replica": replica, "why": str(lost)})

    async def locate(self, session_id: str, besides: str | None = None) -> str | None:
        """The replica that holds the session in its latest epoch, asked for; None if none `besides` does.

        Those that were silent just now are asked if no other has it: they may speak again.
        """
        best = (-1, "")
        for replicas in await self._there():
            others = [replica for replica in replicas if replica != besides]
            answers = await self._ask_each(others, "holds", session_id)
            best = max([best, *((epoch, replica) for replica, epoch in answers)])
            if best[0] >= 0:
                break
        if best[0] < 0:
            self.forget(session_id)
            return None
        self.remember(session_id, best[1])
        return best[1]

    async def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """What every replica answers within a second; those that do not are left out.

        So are those that were silent just now, unless all were.
        """
        speaking, silent = await self._there()
        return await self._ask_each(speaking or silent, method, *arguments)

    async def _ask_each(self, replicas: list[str], method: str, *arguments: Any) -> list[Any]:
        asked = [self._ask(replica, method, arguments) for replica in replicas]
        return [answer for answer in await asyncio.gather(*asked) if answer is not None]

    async def _ask(self, replica: str, method: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return await self._call(f"{replica}/", method, arguments, ANSWER_S)
        except ReplicaLost as lost:
            logger.warning("replica left out", extra={"replica": replica, "why": str(lost)})
            return None

    async def _there(self) -> tuple[list[str], list[str]]:
        """The replicas: those that speak, as far as is known, and those that were silent just now."""
        avoided, there = self._avoided(), await asyncio.to_thread(self._replicas)
        return [r for r in there if r not in avoided], [r for r in there if r in avoided]

    def _replicas(self) -> list[str]:
        """Of the deployment, by id; those that are being taken away too."""
        prefix = f"SERVE_REPLICA::{self._handle.app_name}#{self._handle.deployment_name}#"
        named = list_named_actors(all_namespaces=True)
        return [found["name"].removeprefix(prefix) for found in named if found["name"].startswith(prefix)]

    async def _call(self, pinned: str, method: str, arguments: tuple[Any, ...], timeout_s: float) -> Any:
        response = self._begin(pinned, method, arguments, stream=False)
        try:
            return await asyncio.wait_for(_answer(response), timeout_s)
        except TimeoutError:
            raise self._fell_silent(pinned, timeout_s) from None
        except Exception as error:
            raise _translated(error) from error

    def _fell_silent(self, pinned: str, seconds: float) -> ReplicaLost:
        """A replica has not answered for `seconds`; if that is too long for any, it is avoided for a while."""
        replica = pinned.partition("/")[0]
        if replica and seconds >= self._silence_s:
            self._silent[replica] = asyncio.get_running_loop().time()
        return ReplicaLost(f"its replica was silent for {seconds:g} s")

    def _avoided(self) -> set[str]:
        now = asyncio.get_running_loop().time()
        self._silent = {replica: since for replica, since in self._silent.items() if now < since + AVOIDED_S}
        return set(self._silent)

    def _begin(self, pinned: str, method: str, arguments: tuple[Any, ...], *, stream: bool) -> Any:
        """Send a request that has no parent: Serve routes the calls of one parent request one at a time."""
        handle = self._handle.options(session_id=pinned, method_name=method, stream=stream)
        return Context().run(partial(handle.remote, *arguments))


async def _answer(response: Any) -> Any:
    return await response


def _translated(error: Exception) -> Exception:
    """What a call through Serve raised, as one of ours where it is."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, ServingError | EngineError):
        return error.cause
    if isinstance(error, RayActorError):
        return ReplicaLost(f"its replica died ({type(error).__name__})")
    if isinstance(error, BackPressureError | DeploymentUnavailableError):
        return ReplicaLost(f"no replica takes requests: {error}")
    return error
