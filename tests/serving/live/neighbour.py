"""An application of somebody else in a Ray cluster: `ADDRESS HTTP_PORT GRPC_PORT VERB`.

`start` begins Serve, where it does not run, without services of gRPC, and deploys; `deploy` deploys where it runs;
`delete` takes the application away, and `status` says in JSON which applications and Serve's actors there are.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.util import list_named_actors

NAME = "neighbour"


class Neighbour:
    """Answers everything with its name."""

    def __call__(self, request: object) -> str:
        return NAME


def main() -> None:
    address, http, grpc, verb = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    if verb == "start":
        serve.start(http_options=HTTPOptions(port=int(http)), grpc_options=gRPCOptions(port=int(grpc)))
    if verb in ("start", "deploy"):
        neighbour: Any = serve.deployment(Neighbour, ray_actor_options={"num_cpus": 0.1})
        serve.run(neighbour.bind(), name=NAME, route_prefix=f"/{NAME}")
    if verb == "delete":
        serve.delete(NAME)
    found = [str(actor["name"]) for actor in list_named_actors(all_namespaces=True)]
    try:
        applications = sorted(serve.status().applications)
    except RayError:  # Serve is ending.
        applications = []
    print(json.dumps({"applications": applications, "actors": sorted(found)}))


if __name__ == "__main__":
    main()
