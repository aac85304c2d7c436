"""Which replica a request goes to: the session's owner first, then the one with most free slots.

It only ranks. The replica is the authority on its slots and sessions, and refuses in milliseconds what was ranked
by news that is out of date.
"""

from __future__ import annotations

import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica


class SessionRouter(RequestRouter):
    """Ranks replicas by `session_id`, which is `<owner>/<session>`; the owner is empty where it is not known.

    Replicas report `free` slots and the `sessions` they hold with their routing statistics. A replica that Serve
    is taking away stays within reach of its own sessions for `drain_s`.
    """

    def initialize_state(self, drain_s: float = 3600.0, **_: Any) -> None:
        """Called once by Serve, with the router's arguments."""
        self._drain_s = drain_s
        self._left: dict[ReplicaID, tuple[RunningReplica, float]] = {}
        self._placed: dict[ReplicaID, int] = {}
        self._seen: dict[ReplicaID, dict[str, Any]] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Keep those that have left, for their own sessions."""
        now, staying = time.monotonic(), {replica.replica_id for replica in replicas}
        for replica in self.curr_replicas.values():
            if replica.replica_id not in staying:
                self._left.setdefault(replica.replica_id, (replica, now + self._drain_s))
        self._left = {
            identity: (replica, until)
            for identity, (replica, until) in self._left.items()
            if until > now and identity not in staying
        }
        super().update_replicas([*replicas, *(replica for replica, _ in self._left.values())])

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Nothing of it can be reached any more."""
        self._left.pop(replica_id, None)
        super().on_replica_actor_died(replica_id)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas in the order in which they are tried."""
        if pending_request is None:
            return [candidate_replicas]
        # Where nobody takes the request, try again later rather than at once.
        pending_request.routing_context.should_backoff = True
        owner, _, session = pending_request.metadata.session_id.partition("/")
        if owned := [r for r in candidate_replicas if r.replica_id.unique_id == owner]:
            return [owned]
        if session and (
            holding := [r for r in candidate_replicas if session in r.routing_stats.get("sessions", ())]
        ):
            return [holding]
        open_ones = [replica for replica in candidate_replicas if replica.replica_id not in self._left]
        return [[replica] for replica in sorted(open_ones, key=self._free, reverse=True)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Count what was placed since a replica last reported."""
        if pending_request.metadata.call_method == "open":
            self._placed[replica_id] = self._placed.get(replica_id, 0) + 1

    def _free(self, replica: RunningReplica) -> int:
        stats, identity = replica.routing_stats, replica.replica_id
        if self._seen.get(identity) is not stats:
            self._seen[identity], self._placed[identity] = stats, 0
        free: int = stats.get("free", 0)
        return free - self._placed.get(identity, 0)
