"""Which replica this process is."""

from __future__ import annotations

from ray import serve


def this_replica() -> str:
    """Its id in Serve, which goes with every session that it holds."""
    return serve.get_replica_context().replica_id.unique_id
