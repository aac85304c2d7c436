"""Where Serve's proxies listen for gRPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def bind_grpc(host: str) -> Callable[[], None]:
    """What makes a proxy that starts in its process listen for gRPC on `host` only.

    Ray's workers call it when they start. Serve 2.60 listens on every interface, and has no setting for it. Where
    the port is taken, the proxy does not start.
    """

    def bind() -> None:
        from ray.serve._private import default_impl

        def add_address(grpc_server: Any, server_address: str) -> None:
            port = server_address.rpartition(":")[2]
            grpc_server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

        default_impl.add_grpc_address = add_address

    return bind
