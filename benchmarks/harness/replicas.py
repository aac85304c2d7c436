"""Replicas of a server on this machine as processes: to find one by what it logged, and to stop or kill it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
import ray
from ray import serve
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.serve.context import _set_global_client

from serving.config import ServerConfig
from serving.errors import ServerError
from serving.launch.running import Running
from serving.launch.supervisor import start_cluster
from serving.protocol.requests import APPLICATION


class JoinedServer:
    """A server in a cluster that this process has joined; its replicas log to `logs`."""

    def __init__(self, process: subprocess.Popen[str], logs: Path) -> None:
        self.logs = logs
        self._process = process

    def stop(self) -> None:
        """Leave the cluster, and have the server end in good order."""
        ray.shutdown()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def joined_server(config: ServerConfig) -> Iterator[JoinedServer]:
    """A server in a cluster of its own, which this process joins, for as long as the block lasts.

    Ray does not start here: what it forks from a process in which gRPC has threads may hang before it runs.
    Raises ServerError where the server does not start.
    """
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with start_cluster(config, environment) as process:
        assert process.stdout is not None
        message = json.loads(process.stdout.readline() or '{"problem": "it ended without a word"}')
        if problem := message.get("problem"):
            raise ServerError(f"the server did not start: {problem}")
        running = Running.of(message)
        with joined(running.cluster):
            yield JoinedServer(process, running.logs)


@contextmanager
def joined(cluster: str) -> Iterator[None]:
    """Join a Ray cluster that this user started on this machine, `host:port`, for as long as the block lasts."""
    # A new cluster asks for a token out of a file of the user's; Ray reads it only where it finds clusters itself.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    with ray.init(address=cluster, log_to_driver=False, logging_level=logging.WARNING):
        # Serve would go on with the cluster that was joined before.
        _set_global_client(None)  # type: ignore[no-untyped-call]
        yield


class Replica(NamedTuple):
    """A replica of a server on this machine: its deployment, its id in Serve and its process."""

    deployment: str
    id: str
    pid: int


def replicas(logs: Path) -> list[Replica]:
    """Those that write their logs into a folder, and whose process is there."""
    found = []
    for file in sorted(logs.glob(f"replica_{APPLICATION}_*.log")):
        deployment, _, name = file.stem.removeprefix(f"replica_{APPLICATION}_").rpartition("_")
        with file.open() as lines, suppress(json.JSONDecodeError):
            replica = Replica(deployment, name, json.loads(lines.readline())["process"])
            if _is_replica(replica.pid):
                found.append(replica)
    return found


def log_lines(logs: Path, deployment: str) -> Iterator[dict[str, Any]]:
    """All that the replicas of a deployment have logged; a line that is cut short is left out."""
    for file in logs.glob(f"replica_{APPLICATION}_{deployment}_*.log"):
        for line in file.read_text().splitlines():
            with suppress(json.JSONDecodeError):
                yield json.loads(line)


class Replicas:
    """Those that write their logs into a folder. The ones that were stopped go on at the end of the block."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._processes: list[psutil.Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resume_all()

    def resume_all(self) -> None:
        """Have those that were stopped go on."""
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def send(self, number: signal.Signals, deployment: str, message: str, session: str) -> None:
        """Send a signal to the replica of a deployment that logged `message` last, of this session or of none."""
        said = [line for line in log_lines(self._logs, deployment) if line["message"] == message]
        lines = [line for line in said if line.get("session", session) == session]
        self._send(max(lines, key=lambda line: str(line["asctime"]))["process"], number)

    def kill_all(self, deployment: str) -> None:
        """Kill every replica of a deployment."""
        for replica in replicas(self._logs):
            if replica.deployment == deployment:
                self._send(replica.pid, signal.SIGKILL)

    def _send(self, process: int, number: signal.Signals) -> None:
        self._processes.append(psutil.Process(process))
        self._processes[-1].send_signal(number)


def is_whole() -> bool:
    """Whether every deployment has all its replicas, as far as Serve knows."""
    deployments = serve.status().applications[APPLICATION].deployments.values()
    return all(found.status == "HEALTHY" for found in deployments)


def wait_until_whole(seconds: float = 60) -> None:
    """Wait until every deployment has all its replicas. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if is_whole():
            return
        time.sleep(0.2)
    raise TimeoutError(f"not whole after {seconds:g} s: {serve.status()}")


def _is_replica(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied, IndexError):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and "ServeReplica" in process.cmdline()[0]
    return False
