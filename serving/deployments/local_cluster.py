"""A server on this machine: a Ray cluster, Serve in it, and the server in Serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions

from serving.config import ServerConfig
from serving.deployments.app import build, denoisers, replicas
from serving.deployments.routing.replica_client import ReplicaClient
from serving.deployments.telemetry.logging_config import LOGGING
from serving.deployments.worker_setup import worker_setup
from serving.hosts import in_address
from serving.launch.running import Running
from serving.protocol.requests import APPLICATION

SERVICES = [
    "serving.deployments.grpc_handlers.add_sessions",
    "serving.deployments.grpc_handlers.add_health",
]


END_S = 3.0
"""The longest that a replica may take, when the server ends, to tell its viewers and finish recordings."""


@contextmanager
def local_cluster(config: ServerConfig) -> Iterator[Running]:
    """A Ray cluster on this machine, Serve in it, and the server in Serve, for as long as the block lasts."""
    try:
        yield _start(config)
    finally:
        stop()


def _start(config: ServerConfig) -> Running:
    cluster: Any = ray.init(
        address="local",
        # Ray places replicas by them, and starts as many workers before any is asked for.
        num_cpus=replicas(config),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"worker_process_setup_hook": worker_setup(config.host)},
        _metrics_export_port=config.metrics_port,
    )
    start_serve(config)
    serve.run(build(config), name=APPLICATION, route_prefix="/")
    found = cluster.address_info
    metrics = f"http://{in_address(found['node_ip_address'])}:{found['metrics_export_port']}/metrics"
    return Running(Path(found["session_dir"]) / "logs" / "serve", metrics, found["gcs_address"])


def start_serve(config: ServerConfig) -> None:
    """Start Serve in the cluster that this process is connected to. Returns when its doors are open."""
    serve.start(
        http_options=HTTPOptions(host=config.host, port=config.http_port),
        grpc_options=gRPCOptions(port=config.grpc_port, grpc_servicer_functions=SERVICES),
        logging_config=LOGGING,
    )


async def end_sessions() -> None:
    """End every session, so that viewers are told and recordings finished."""
    pool = ReplicaClient(denoisers(), "denoiser", END_S)
    replicas = (await pool.replicas()).all
    ending = (pool.call(replica, "end_sessions", timeout_s=END_S) for replica in replicas)
    await asyncio.gather(*ending, return_exceptions=True)


def stop() -> None:
    """End every session, so that viewers are told and recordings finished; then Serve and its cluster."""
    if not ray.is_initialized():
        return
    if APPLICATION in serve.status().applications:
        asyncio.run(end_sessions())
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()
