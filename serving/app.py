"""From a config to what Serve runs."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import serve
from ray.serve.config import HTTPOptions, RequestRouterConfig, gRPCOptions
from ray.serve.handle import DeploymentHandle

from serving.config import ServerConfig
from serving.fleet import Fleet
from serving.logs import LOGGING
from serving.replicas import DenoiserReplica, TextEncoderReplica, VideoDecoderReplica
from serving.session_manager import SessionManagerReplica
from serving.session_router import SessionRouter

APPLICATION = "longtake"
"""The name of the gRPC application, which clients may send as the metadata key `application`."""

SERVICES = [
    "serving.proxy.add_sessions",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
]

MOST_REQUESTS = 10_000
"""Of one replica at a time: streams and the commands beside them. Slots are counted by the replicas themselves."""

SHUTDOWN_S = 10.0

PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
"""For Serve's controller, which would kill a proxy that is not there after 5 s: on a busy machine none ever is."""


class Running(NamedTuple):
    """A server on this machine: where its metrics can be read, and the folder that its replicas log to."""

    metrics: str
    logs: Path


def start(config: ServerConfig) -> Running:
    """Start a Ray cluster on this machine, Serve in it, and the server in Serve."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    cluster: Any = ray.init(
        num_cpus=64, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
    )
    serve.start(
        http_options=HTTPOptions(host=config.host, port=config.http_port),
        grpc_options=gRPCOptions(port=config.grpc_port, grpc_servicer_functions=SERVICES),
    )
    serve.run(build(config), name=APPLICATION, route_prefix="/")
    found = cluster.address_info
    metrics = f"http://{found['node_ip_address']}:{found['metrics_export_port']}/metrics"
    return Running(metrics, Path(found["session_dir"]) / "logs" / "serve")


def stop() -> None:
    """End every session, so that viewers are told and recordings finished; then Serve and its cluster."""
    if not ray.is_initialized():
        return
    if APPLICATION in serve.status().applications:
        asyncio.run(Fleet(denoisers(), SHUTDOWN_S).ask_all("end_sessions"))
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def build(config: ServerConfig) -> serve.Application:
    """The application behind both faces. It stays one, since gRPC clients need not name the only one there is."""
    manager = _deployment(SessionManagerReplica, "SessionManager", config.managers, pinned=False)
    return manager.bind(config, _denoisers(config))


def _denoisers(config: ServerConfig) -> serve.Application:
    denoisers = _deployment(DenoiserReplica, "Denoiser", config.denoisers, pinned=True, device=config.device)
    if config.stages == "shared":
        return denoisers.bind(config)
    reading = config.text_device or config.device
    text = _deployment(TextEncoderReplica, "TextEncoder", config.text_encoders, pinned=False, device=reading)
    pictures = _deployment(VideoDecoderReplica, "VideoDecoder", config.decoders, pinned=True, device=config.device)
    return denoisers.bind(config, text.bind(config), pictures.bind(config))


def _deployment(kind: type, name: str, replicas: int, *, pinned: bool, device: str = "cpu") -> Any:
    router: dict[str, Any] = {"request_router_config": _router()} if pinned else {}
    return serve.deployment(
        kind,
        name=name,
        num_replicas=replicas,
        max_ongoing_requests=MOST_REQUESTS,
        health_check_period_s=1.0,
        health_check_timeout_s=5.0,
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=LOGGING,
        ray_actor_options={"num_cpus": 0.5, "num_gpus": 1 if device == "cuda" else 0},
        **router,
    )


def _router() -> RequestRouterConfig:
    settings: Any = {
        "request_router_class": SessionRouter,
        "request_routing_stats_period_s": 0.3,
        "request_routing_stats_timeout_s": 2.0,
    }
    return RequestRouterConfig(**settings)


def denoisers() -> DeploymentHandle[Any]:
    """The denoisers of the server in this cluster, for another face."""
    return serve.get_deployment_handle("Denoiser", APPLICATION)
