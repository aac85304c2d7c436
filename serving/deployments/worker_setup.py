"""What each process of a server's cluster does first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from serving.hosts import in_address


def worker_setup(host: str) -> Callable[[], None]:
    """What Ray's workers call when they start: the proxy among them then listens for gRPC on `host` only, has
    the HTTP port to itself, and logs no tracebacks of clients that have gone.

    Serve 2.60 listens for gRPC on every interface, and has no setting for it. Where a port is taken, the proxy
    does not start.
    """

    where = in_address(host)

    def set_up() -> None:
        # Here, not above: Ray sends this function to its workers by value.
        from ray.serve._private import default_impl

        from serving.deployments import http_port
        from serving.deployments.telemetry.logging_config import SERVE, Departures

        def add_address(grpc_server: Any, server_address: str) -> None:
            port = server_address.rpartition(":")[2]
            grpc_server.add_insecure_port(f"{where}:{port}")

        default_impl.add_grpc_address = add_address
        http_port.hold_alone()
        for name in ("asyncio", SERVE):
            logging.getLogger(name).addFilter(Departures())

    return set_up
