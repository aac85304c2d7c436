"""A server in a Ray cluster that is there already, and that is left as it was when the server ends."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, HTTPOptionsSchema, ServeInstanceDetails, gRPCOptionsSchema

from engines.config.validation import require
from serving.config import ServerConfig
from serving.deployments.app import build, resources
from serving.deployments.local_cluster import SERVICES, end_sessions, start_serve
from serving.deployments.routing.kv_register import forget_all
from serving.deployments.worker_setup import worker_setup
from serving.errors import ServerError
from serving.hosts import is_loopback
from serving.launch.ray_environment import ENVIRONMENT
from serving.launch.running import Running
from serving.launch.startup_checks import CONNECT_S, require_port
from serving.protocol.requests import APPLICATION
from serving.weights.catalog import models_folder

FREED_S = 5.0
"""How long Ray may take to notice that what a server before this one had is free again."""

POLL_S = 0.5
WATCH_S = 2.0
"""Between two looks at whether the server is still there."""

BROKEN = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
ROUTE = "/"


class ServeThere(NamedTuple):
    """What of the Serve that runs in a cluster concerns a server.

    `is_open` says whether other machines reach its gRPC port; routes are by the names of applications.
    """

    http_port: int
    grpc_port: int
    is_open: bool
    services: frozenset[str]
    routes: Mapping[str, str | None]


@contextmanager
def existing_cluster(config: ServerConfig, ending: threading.Event) -> Iterator[Running]:
    """A server in the Ray cluster at `config.address`, for as long as the block lasts, or until it has to end.

    Serve is started there if it does not run, and ended again unless others use it by then. Raises ServerError or
    ConfigError, with the remedy, for what cannot be served there.
    """
    found = _connect(config)
    try:
        there = _serve_there()
        _require_room(config, there)
        try:
            if there is None:
                start_serve(config)
            _deploy(config, ending)
            logs = Path(found["session_dir"]) / "logs" / "serve"
            yield Running(logs, _metrics(), found["gcs_address"])
        finally:
            _take_away(with_serve=there is None)
    finally:
        ray.shutdown()


def wait_until_ended(config: ServerConfig, ending: threading.Event) -> None:
    """Wait for `ending`. Raises ServerError where the server is not in its cluster any more before that."""
    while not ending.wait(WATCH_S):
        try:
            is_there = APPLICATION in serve.status().applications
        except RayError as error:
            raise ServerError(f"the Ray cluster at {config.address} does not answer any more: {error}") from error
        if not is_there:
            raise ServerError(f"somebody took the application {APPLICATION} out of the Ray cluster")


def _connect(config: ServerConfig) -> Mapping[str, Any]:
    """What Ray says of the node that this process is on."""
    where = f"the Ray cluster at {config.address}"
    try:
        cluster: Any = ray.init(
            address=config.address,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": ENVIRONMENT, "worker_process_setup_hook": worker_setup(config.host)},
        )
    except ConnectionError as error:
        remedy = "where it asks for a token, give it by RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        raise ServerError(f"{where} does not let this process in; {remedy} ({error})") from error
    except RuntimeError as error:
        versions = re.findall(r"(?:Ray|Python): (\S+)", str(error))
        if len(versions) != 4:
            raise ServerError(f"{where} cannot be joined from this host: {error}") from error
        theirs, ours = (f"Ray {ray_} and Python {python}" for ray_, python in (versions[:2], versions[2:]))
        remedy = "run `longtake serve` with the versions of the cluster, or start the cluster with those here"
        raise ServerError(f"{where} has {theirs}, and here are {ours}; {remedy}") from error
    except ValueError as error:
        raise ServerError(f"address {config.address!r} is none of a Ray cluster: {error}") from error
    return dict(cluster.address_info)


def _serve_there() -> ServeThere | None:
    """Serve as it runs in the cluster; None if it does not."""
    try:
        client = _get_global_client(raise_if_no_controller_running=False)
        if client is None:
            return None
        found = ServeInstanceDetails.model_validate(client.get_serve_details())
    except RayError as error:
        raise ServerError("Serve is just about to end in the Ray cluster; try again in some seconds") from error
    http, grpc = found.http_options or HTTPOptionsSchema(), found.grpc_options or gRPCOptionsSchema()
    routes = {name: application.route_prefix for name, application in found.applications.items()}
    return ServeThere(http.port, grpc.port, _is_open(grpc.port), frozenset(grpc.grpc_servicer_functions), routes)


def _require_room(config: ServerConfig, there: ServeThere | None) -> None:
    if there is None:
        for listener in config.listeners:
            if listener.setting != "metrics_port":
                require_port(listener)
    else:
        require_fit(config, there)
    _require_resources(config)


def require_fit(config: ServerConfig, there: ServeThere) -> None:
    """Raise ConfigError, with the remedy, for a server that has no place beside what Serve has already."""
    where = f"Serve, which runs in the Ray cluster at {config.address},"
    problem = (
        f"the application {APPLICATION} runs in the Ray cluster at {config.address} already; end that server, or "
        f"take it away by ray.serve.delete({APPLICATION!r})"
    )
    require(APPLICATION not in there.routes, problem)
    missing = [service for service in SERVICES if service not in there.services]
    problem = (
        f"{where} has no {' and '.join(missing)} among its grpc_servicer_functions; start it with them, or end it "
        "by `serve shutdown`, and `longtake serve` will start it"
    )
    require(not missing, problem)
    theirs, ours = (there.http_port, there.grpc_port), (config.http_port, config.grpc_port)
    problem = (
        f"{where} listens on the HTTP port {theirs[0]} and the gRPC port {theirs[1]}, not on {ours[0]} and "
        f"{ours[1]}; say --http-port {theirs[0]} --grpc-port {theirs[1]}"
    )
    require(theirs == ours, problem)
    taken = [name for name, route in there.routes.items() if route == ROUTE]
    problem = (
        f"the application {', '.join(taken)} in the Ray cluster at {config.address} has the route {ROUTE}, where "
        "the page is to be; give it another route_prefix"
    )
    require(not taken, problem)
    is_guarded = bool(config.tokens.digests) or config.insecure or not there.is_open
    problem = (
        f"{where} lets other machines in on the gRPC port {there.grpc_port}, and there are no tokens: give tokens "
        "or say --insecure"
    )
    require(is_guarded, problem)


def _is_open(port: int) -> bool:
    """Whether this machine, a node of the cluster, listens on `port` for others, at any of its addresses."""
    for entry in chain.from_iterable(psutil.net_if_addrs().values()):
        if entry.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(entry.address):
            with suppress(OSError):
                socket.create_connection((entry.address, port), CONNECT_S).close()
                return True
    return False


def _require_resources(config: ServerConfig) -> None:
    """Raise ConfigError unless the cluster has room, now or as soon as it has noticed what is free."""
    until = time.monotonic() + FREED_S
    while (missing := _missing(config)) and time.monotonic() < until:
        time.sleep(POLL_S)
    problem = (
        f"the server needs {' and '.join(missing)} in the Ray cluster at {config.address}; free some or add nodes "
        "or take fewer replicas (--managers, --denoisers, --decoders, --text-encoders)"
    )
    require(not missing, problem)


def _missing(config: ServerConfig) -> list[str]:
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return [
        f"{needed:g} {name} where {free.get(name, 0):g} of {total.get(name, 0):g} are free"
        for name, needed in resources(config).items()
        if free.get(name, 0) < needed
    ]


def _deploy(config: ServerConfig, ending: threading.Event) -> None:
    """Return when the server runs. Raises RuntimeError, with what Serve says, where it does not."""
    # Workers have a directory, and perhaps an environment, of their own.
    here = {"recordings": config.recordings.resolve(), "models_dir": models_folder(config.models_dir).resolve()}
    forget_all()
    server = serve.RunTarget(build(config.model_copy(update=here)), name=APPLICATION, route_prefix=ROUTE)
    serve.run_many([server], wait_for_applications_running=False)
    while (found := serve.status().applications[APPLICATION]).status != ApplicationStatus.RUNNING:
        if found.status in BROKEN:
            # The application says which deployments failed, and those say why.
            raise RuntimeError("\n".join((found.message, *(part.message for part in found.deployments.values()))))
        if ending.wait(POLL_S):
            raise ServerError("it was told to end before it had started")


def _metrics() -> str:
    """Where the metrics of each node are."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return ",".join(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes)


def _take_away(*, with_serve: bool) -> None:
    """End the sessions and the application; Serve as well, if it is to go and nobody else uses it."""
    if APPLICATION in serve.status().applications:
        asyncio.run(end_sessions())
        serve.delete(APPLICATION)
        forget_all()
    if with_serve and not serve.status().applications:
        serve.shutdown()  # type: ignore[no-untyped-call]
