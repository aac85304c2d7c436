"""The server in a cluster of several hosts: managers and proxy on the first, the other replicas on the others.

Says `hosts N` whenever Ray counts another number of them, and `whole` or `not whole` as its replicas come and go.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions

from benchmarks.harness.replicas import is_whole
from serving.config import ServerConfig
from serving.deployments import app
from serving.deployments.local_cluster import SERVICES
from serving.protocol.requests import APPLICATION

FIRST_HOST, OTHER_HOSTS = "first", "other"
"""The resources that hosts have."""

POLL_S = 0.2

GRACE_S = 20.0
"""Of replicas whose node is drained."""

_deployment = app._deployment


def _placed(kind: type, name: str, replicas: int, ends_s: float, **options: Any) -> Any:
    """With denoisers, and whatever else they need, spread over the other hosts."""
    deployment = _deployment(kind, name, replicas, max(ends_s, GRACE_S), **options)
    is_first = name == "SessionManager"
    where = {"resources": {FIRST_HOST if is_first else OTHER_HOSTS: 0.01}}
    return deployment.options(
        max_replicas_per_node=1 if name == "Denoiser" and replicas > 2 else None,
        ray_actor_options=deployment.ray_actor_options | where,
    )


def _status() -> str:
    return "whole" if is_whole() else "not whole"


def main() -> None:
    """The arguments are the address of the cluster, the number of other hosts, the port of gRPC, and settings.

    Settings are JSON; of denoisers there are as many as other hosts, unless they say otherwise.
    """
    address, others, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    settings = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    app._deployment = _placed
    config = ServerConfig(**{"denoisers": others, "managers": 2, "slots": 2, "grpc_port": port} | settings)
    ray.init(address=address, log_to_driver=False)
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=config.http_port),
        grpc_options=gRPCOptions(port=port, grpc_servicer_functions=SERVICES),
    )
    serve.run(app.build(config), name=APPLICATION, route_prefix="/")
    said: dict[str, str] = {}
    while True:
        alive = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
        for what, now in (("hosts", f"hosts {alive}"), ("status", _status())):
            if said.get(what) != now:
                said[what] = now
                print(now, flush=True)
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
