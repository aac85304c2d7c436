"""`longtake serve`: a server on this machine, or in a Ray cluster that is there, until it is interrupted."""

from __future__ import annotations

import argparse

from serving.cli.terminal import tell
from serving.config import ServerConfig
from serving.hosts import in_address, is_loopback
from serving.launch import supervisor
from serving.launch.memory_preset import memory_plan
from serving.launch.running import Running
from serving.launch.settings import SettingsFlags
from serving.launch.startup_checks import check_memory, check_startup

METRICS = "metrics (that port, and Ray's 44217 and 44227)"
RAYS = "Ray's other ports ask for a token, which is new each time"
"""What of a new server other machines reach, whatever its host."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting of a server."""
    parser.set_defaults(flags=SettingsFlags(parser))


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it. Raises EngineError or ServingError if that cannot be, or if a part dies."""
    config, notes = options.flags.read(options)
    check_startup(config)
    tell(*notes)
    if config.device == "cuda" and config.address is None:
        plan = memory_plan(config)
        tell(*plan.lines(config.slots))
        check_memory(config, plan)
    tell(f"starting {config.model} on {config.device}{_where(config)}")
    supervisor.serve(config, lambda running: tell(*_doors(config, running)), lambda: tell("stopping ..."))
    return 0


def _where(config: ServerConfig) -> str:
    """In which cluster; of this machine its kernels, which a cluster's nodes choose by themselves."""
    if config.address is None:
        return f"; kernels: {config.backends}"
    return f" in the Ray cluster at {config.address}"


def _doors(config: ServerConfig, running: Running) -> list[str]:
    """Where the server is, and what of it others can reach."""
    host = in_address(config.host)
    lines = [
        f"gRPC     {host}:{config.grpc_port}",
        f"page     http://{host}:{config.http_port}/",
        f"metrics  {running.metrics}",
    ]
    is_for_all = not is_loopback(config.host) and not config.tokens.digests
    if config.address is None:
        more = ", gRPC and the page" if is_for_all else ", nothing else"
        lines.append(f"open to other machines, without a token: {METRICS}{more}; {RAYS}")
    if is_for_all:
        lines.append(f"INSECURE: everybody who reaches {config.host} may open, steer and end sessions")
    return [*lines, f"logs     {running.logs}"]
