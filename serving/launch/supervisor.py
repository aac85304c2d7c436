"""`longtake serve` itself: it starts the process that holds the cluster, watches over it, and ends all of it.

Ray does not run here, so nothing of it can take this process with it. The cluster's process reads its config from
standard input, which stays open for as long as the server is to run, and says on standard output when it is there.
Where this process is killed, standard input ends, and the cluster's process ends everything.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO, Any, NamedTuple

import psutil
from typing_extensions import override

from serving.config import ServerConfig
from serving.errors import ServerError
from serving.launch.ending_signals import ending_signals
from serving.launch.process_tree import adopt_orphans, end_descendants, is_alive
from serving.launch.ray_environment import ENVIRONMENT
from serving.launch.running import Running

CLUSTER = (sys.executable, "-m", "serving.deployments.cluster_process")

VITAL = ("gcs_server", "raylet")
"""Children of the cluster's process without which nothing goes on. Serve starts its own again, and Ray's agents
end the raylet. A cluster that was there has none of them here."""

POLL_S = 0.5
"""Between two looks at whether the processes are alive."""

STARTING_POLL_S = 0.05
"""The same while the server starts: then Ray ends the others soon after one of them."""

STOP_S = 7.0
"""The longest that the cluster may take to let its sessions go; then its processes are killed."""

STOP_THERE_S = 45.0
"""The longest that it may take to leave a cluster as it was."""

GRACE_S = 1.0
"""From asking what is left to end to killing it."""


class Interrupted(Exception):
    """A signal asked the server to stop."""


def serve(config: ServerConfig, started: Callable[[Running], None], stopping: Callable[[], None]) -> None:
    """Run a server until a signal ends it. Raises ServerError if it does not start, or if a part of it dies."""
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for number in ending_signals():
        signal.signal(number, lambda *_: events.put(Interrupted()))
    adopt_orphans()
    with tempfile.NamedTemporaryFile("w+", prefix="longtake-serve-", suffix=".log") as output:
        cluster = _start(config, output, events)
        try:
            vital: dict[str, psutil.Process] = {}
            running = _wait_until_started(cluster, vital, events, output)
            started(running)
            _watch(cluster, vital, running, events)
        except Interrupted:
            with suppress(OSError):  # The terminal has gone, perhaps: that is no reason not to stop in good order.
                stopping()
            _stop(cluster, events, longest_stop(config))
        finally:
            end_descendants(GRACE_S)


def longest_stop(config: ServerConfig) -> float:
    """For how many seconds the server may end in good order."""
    return STOP_S if config.address is None else STOP_THERE_S


def _start(config: ServerConfig, output: IO[str], events: queue.SimpleQueue[Any]) -> subprocess.Popen[str]:
    # Ray listens on every interface; so its ports ask for a token, which it reads as it is imported. A
    # cluster that is there has one of its own, or none.
    is_new = config.address is None
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)} if is_new else {}
    cluster = start_cluster(config, os.environ | token, output)
    threading.Thread(target=_read, args=(cluster.stdout, events), daemon=True).start()
    return cluster


def start_cluster(
    config: ServerConfig, environment: Mapping[str, str], errors: IO[str] | None = None
) -> subprocess.Popen[str]:
    """The process that holds the cluster: see there. It ends with its standard input.

    It is in a session of its own: Ctrl-C and signals to the group come to this process only.
    """
    cluster = subprocess.Popen(
        CLUSTER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=ENVIRONMENT | dict(environment),
        start_new_session=True,
    )
    assert cluster.stdin is not None
    cluster.stdin.write(config.model_dump_json() + "\n")
    cluster.stdin.flush()
    return cluster


def _read(lines: IO[str], events: queue.SimpleQueue[Any]) -> None:
    for line in lines:
        events.put(json.loads(line))


def _next(events: queue.SimpleQueue[Any], within_s: float = POLL_S) -> Any:
    """The next message of the cluster's process, None if none has come for a while. Raises Interrupted."""
    try:
        event = events.get(timeout=within_s)
    except queue.Empty:
        return None
    if isinstance(event, Interrupted):
        raise event
    return event


def _wait_until_started(
    cluster: subprocess.Popen[str],
    vital: dict[str, psutil.Process],
    events: queue.SimpleQueue[Any],
    output: IO[str],
) -> Running:
    """What the cluster's process says of the server that is there; in `vital` is then what it needs."""
    while (message := _next(events, STARTING_POLL_S)) is None:
        if len(vital) < len(VITAL):
            _find(vital, cluster)
        if (ended := _ended(cluster, vital)) and events.empty():
            output.seek(0)
            said = output.read().strip().splitlines()[-1:] if ended.is_cluster else []
            raise ServerError(": ".join(["the server did not start", str(ended), *said]))
    if problem := message.get("problem"):
        raise ServerError(f"the server did not start: {problem}")
    return Running.of(message)


def _find(vital: dict[str, psutil.Process], cluster: subprocess.Popen[str]) -> None:
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(cluster.pid).children():
            if (name := child.name()) in VITAL:
                vital.setdefault(name, child)


def _watch(
    cluster: subprocess.Popen[str],
    vital: Mapping[str, psutil.Process],
    running: Running,
    events: queue.SimpleQueue[Any],
) -> None:
    while True:
        if problem := (_next(events) or {}).get("problem"):
            raise ServerError(f"the server has ended: {problem}; logs: {running.logs}")
        if (ended := _ended(cluster, vital)) and events.empty():
            raise ServerError(f"{ended}, and the server with it; logs: {running.logs}")


class Ended(NamedTuple):
    """The process whose end has ended the server, or the parts of its cluster that were gone at one look."""

    name: str
    how: str
    is_cluster: bool

    @override
    def __str__(self) -> str:
        return f"{self.name} {self.how}"


def _ended(cluster: subprocess.Popen[str], vital: Mapping[str, psutil.Process]) -> Ended | None:
    """The process that has ended, if any has; of several, the one that took the others along.

    Ray ends its client, by a code or an abort, once the raylet or the GCS is gone, and the other with it; while
    it starts at once, so that nobody sees which was first. Whatever else kills the cluster's process kills both.
    """
    dead = [f"{name} (pid {one.pid})" for name, one in vital.items() if not is_alive(one)]
    if dead:
        with suppress(subprocess.TimeoutExpired):
            cluster.wait(POLL_S)
    code = cluster.poll()
    if dead and (code is None or code > 0 or code == -signal.SIGABRT):
        return Ended(" and ".join(dead), "died", is_cluster=False)
    if code is None:
        return None
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
    return Ended(f"the process of its cluster (pid {cluster.pid})", f"ended {how}", is_cluster=True)


def _stop(cluster: subprocess.Popen[str], events: queue.SimpleQueue[Any], longest_s: float) -> None:
    """Let the cluster end in good order, for a while, or until a second signal comes."""
    assert cluster.stdin is not None
    cluster.stdin.close()
    deadline = time.monotonic() + longest_s
    try:
        while cluster.poll() is None and time.monotonic() < deadline:
            _next(events)
    except Interrupted:
        return
