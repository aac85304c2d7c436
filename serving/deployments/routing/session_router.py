"""Which replica a request goes to, and that a replica is being taken away."""

from __future__ import annotations

import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from typing_extensions import override

from serving.deployments.routing import departures


class SessionRouter(RequestRouter):
    """Routes a request to the replica whose id is its `session_id`; one that names none, to any that stays.

    A replica that Serve is taking away stays within reach of those who name it for `drain_s`. Where the one that
    is named is not there, any gets the request, and refuses it in milliseconds: copies are known by attempts.
    """

    @override
    def initialize_state(self, drain_s: float = 3600.0, **_: Any) -> None:
        """Called once by Serve, with the router's arguments."""
        self._drain_s = drain_s
        self._left: dict[ReplicaID, tuple[RunningReplica, float]] = {}

    @override
    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Keep those that have left, for those who name them."""
        now, staying = time.monotonic(), {replica.replica_id for replica in replicas}
        for replica in self.curr_replicas.values():
            if replica.replica_id not in staying:
                self._left.setdefault(replica.replica_id, (replica, now + self._drain_s))
        self._left = {
            identity: (replica, until)
            for identity, (replica, until) in self._left.items()
            if until > now and identity not in staying
        }
        departures.note(list(self.curr_replicas), [replica.replica_id for replica in replicas])
        super().update_replicas([*replicas, *(replica for replica, _ in self._left.values())])

    @override
    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Nothing of it can be reached any more."""
        self._left.pop(replica_id, None)
        super().on_replica_actor_died(replica_id)

    @override
    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The one that is named alone, or else any that stays."""
        if pending_request is None:
            return [candidate_replicas]
        # Where nobody takes the request, try again later rather than at once.
        pending_request.routing_context.should_backoff = True
        named = pending_request.metadata.session_id
        if found := [r for r in candidate_replicas if r.replica_id.unique_id == named]:
            return [found]
        return [[replica for replica in candidate_replicas if replica.replica_id not in self._left]]
