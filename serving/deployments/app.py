"""From a config to what Serve runs."""

from __future__ import annotations

from typing import Any, NamedTuple

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from serving.config import ServerConfig
from serving.deployments.replicas.denoiser import DenoiserReplica
from serving.deployments.replicas.text_encoder import TextEncoderReplica
from serving.deployments.replicas.video_decoder import VideoDecoderReplica
from serving.deployments.routing.session_router import SessionRouter
from serving.deployments.session_manager import SessionManagerReplica
from serving.deployments.telemetry.logging_config import LOGGING
from serving.protocol.requests import APPLICATION
from serving.weights.quantized_model import served_model


class ShutdownTimes(NamedTuple):
    """The longest a replica that is taken away may go on with what it has: a stage's, and a manager's."""

    replica_s: float
    manager_s: float


ALONE = ShutdownTimes(10.0, 10.0)
"""In a cluster of its own, which ends as a whole."""

DRAINED = ShutdownTimes(60.0, 120.0)
"""In a cluster whose nodes others may drain: sessions move meanwhile, and managers, who see to it, stay longer."""

CPUS = 0.5
"""Of each replica, by which Ray places them."""

MOST_REQUESTS = 10_000
"""Of one replica at a time: streams and the commands beside them. Slots are counted by the replicas themselves."""


def build(config: ServerConfig) -> serve.Application:
    """The application behind gRPC and HTTP. It stays one, since gRPC clients need not name the only one."""
    times = shutdown_times(config)
    manager = _deployment(SessionManagerReplica, "SessionManager", config.managers, times.manager_s)
    return manager.bind(config, served_model(config), _denoisers(config))


def replicas(config: ServerConfig) -> int:
    """How many there are of all deployments."""
    separate = config.decoders + config.text_encoders if config.stages == "separate" else 0
    return config.managers + config.denoisers + separate


def resources(config: ServerConfig) -> dict[str, float]:
    """What all replicas take of a Ray cluster, by Ray's names."""
    needed = {"CPU": CPUS * replicas(config), "GPU": float(config.gpus)}
    return {name: amount for name, amount in needed.items() if amount}


def shutdown_times(config: ServerConfig) -> ShutdownTimes:
    """Of a server's replicas."""
    return ALONE if config.address is None else DRAINED


def _denoisers(config: ServerConfig) -> serve.Application:
    pinned, ends_s = _pinned(), shutdown_times(config).replica_s
    denoisers = _deployment(
        DenoiserReplica, "Denoiser", config.denoisers, ends_s, router=pinned, device=config.device
    )
    if config.stages == "shared":
        return denoisers.bind(config)
    reading = config.text_device or config.device
    text = _deployment(TextEncoderReplica, "TextEncoder", config.text_encoders, ends_s, device=reading)
    pictures = _deployment(
        VideoDecoderReplica, "VideoDecoder", config.decoders, ends_s, router=pinned, device=config.device
    )
    return denoisers.bind(config, text.bind(config), pictures.bind(config))


def _deployment(
    kind: type,
    name: str,
    replicas: int,
    ends_s: float,
    *,
    router: RequestRouterConfig | None = None,
    device: str = "cpu",
) -> Any:
    routing: dict[str, Any] = {} if router is None else {"request_router_config": router}
    return serve.deployment(
        kind,
        name=name,
        num_replicas=replicas,
        max_ongoing_requests=MOST_REQUESTS,
        health_check_period_s=1.0,
        health_check_timeout_s=5.0,
        graceful_shutdown_timeout_s=ends_s,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=LOGGING,
        ray_actor_options={"num_cpus": CPUS, "num_gpus": 1 if device == "cuda" else 0},
        **routing,
    )


def _pinned() -> RequestRouterConfig:
    settings: Any = {"request_router_class": SessionRouter}
    return RequestRouterConfig(**settings)


def denoisers() -> DeploymentHandle[Any]:
    """The denoisers of the server in this cluster."""
    return serve.get_deployment_handle("Denoiser", APPLICATION)
