"""Which replicas Serve is taking away, as the routers of this process have been told.

Serve tells a replica nothing of its own end, but every process that routes requests to it. Routers are sent there
as copies of their class, so what they are told is kept here, in a module, of which a process has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

from cachetools import LRUCache
from ray.serve._private.common import DeploymentID, ReplicaID

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


def has_left(replica: str) -> bool:
    """Whether Serve takes the replica away, or has done so."""
    with _lock:
        return replica in _left


def staying(deployment: DeploymentID) -> frozenset[str]:
    """The replicas that a router of this process may choose from; none where nothing has been routed yet."""
    with _lock:
        return _staying.get(deployment, frozenset())
