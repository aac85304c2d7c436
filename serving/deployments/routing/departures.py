"""Which replicas Serve is taking away, as the routers of this process have been told.

Serve tells a replica nothing of its own end, but every process that routes to it, or that asks. Routers are sent
there as copies of their class, so what they are told is kept here, in a module, of which a process has one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from threading import Lock
from typing import Any

import ray
from cachetools import LRUCache
from ray.serve._private.common import DeploymentID, DeploymentTargetInfo, ReplicaID
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve._private.long_poll import LongPollClient, LongPollNamespace

REMEMBERED = 4096
"""Replicas that have left; ids are never used again."""

_lock = Lock()
_left: LRUCache[str, None] = LRUCache(REMEMBERED)
_staying: dict[DeploymentID, frozenset[str]] = {}


def note(before: Sequence[ReplicaID], now: Sequence[ReplicaID]) -> None:
    """The replicas of a deployment were those of `before`, and are those of `now`."""
    staying = frozenset(replica.unique_id for replica in now)
    with _lock:
        for replica in (*before, *now):
            _staying[replica.deployment_id] = staying
            if replica.unique_id in staying:
                _left.pop(replica.unique_id, None)
            else:
                _left[replica.unique_id] = None


def follow(deployment: DeploymentID) -> LongPollClient:
    """Have this process, on its event loop, be told of a deployment to which it routes nothing."""
    before: list[ReplicaID] = []

    def told(found: DeploymentTargetInfo) -> None:
        now = [replica.replica_id for replica in found.running_replicas]
        note(before, now)
        before[:] = now

    targets: Any = (LongPollNamespace.DEPLOYMENT_TARGETS, deployment)
    return LongPollClient(
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE),
        {targets: told},
        call_in_event_loop=asyncio.get_running_loop(),
        client_id=f"departures of {deployment.name}: {ray.get_runtime_context().get_worker_id()}",
    )


def has_left(replica: str) -> bool:
    """Whether Serve takes the replica away, or has done so."""
    with _lock:
        return replica in _left


def staying(deployment: DeploymentID) -> frozenset[str]:
    """The replicas that a router of this process may choose from; none where nothing has been routed yet."""
    with _lock:
        return _staying.get(deployment, frozenset())
