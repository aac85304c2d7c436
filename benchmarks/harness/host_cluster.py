"""A Ray cluster on several hosts, and the server in it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness.hosts_app import FIRST_HOST, OTHER_HOSTS
from benchmarks.harness.namespaces import Host, Hosts
from benchmarks.harness.replicas import Replica, log_lines, replicas
from serving.launch.ray_environment import ENVIRONMENT
from serving.pb.longtake.v1 import sessions_pb2 as pb

REPOSITORY = Path(__file__).parents[2]
GRPC_PORT, RAY_PORT = 9000, 6379
START_S = 300.0
DRAIN_S = 240
"""When Ray ends a host that is being drained, whatever is on it still: as the chart has it."""
GIVE_UP = {"period_ms": "1000", "timeout_ms": "2000", "failure_threshold": "5", "initial_delay_ms": "2000"}
"""When Ray gives a host up: after 5 s at the least. By default it takes half a minute."""


class HostCluster:
    """Managers and proxy on a first host, replicas on `others`, by `hosts_app` with `options`."""

    def __init__(self, hosts: Hosts, folder: Path, others: int, *options: str) -> None:
        self._hosts = hosts
        self._folder = folder
        self._environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Every host of this cluster has it, and nobody else.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            **ENVIRONMENT,
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S),
            **{f"RAY_health_check_{name}": value for name, value in GIVE_UP.items()},
        }
        self._started: list[subprocess.Popen[str]] = []
        self._may_end: set[int] = set()
        self._rays: dict[str, subprocess.Popen[str]] = {}
        self.said: list[str] = []
        self.others: list[Host] = []
        first = hosts.add("first")
        self._address = f"{first.address}:{RAY_PORT}"
        head = ("--head", f"--port={RAY_PORT}", "--include-dashboard=false", f"--temp-dir={folder}")
        self._ray(first, FIRST_HOST, *head)
        for number in range(others):
            self.join(f"other{number}")
        command = (
            *(sys.executable, "-m", "benchmarks.harness.hosts_app"),
            *(self._address, str(others), str(GRPC_PORT), *options),
        )
        server = first.popen(command, env=self._environment, stdout=subprocess.PIPE)
        self._started.append(server)
        threading.Thread(target=self._listen, args=(server,), daemon=True).start()
        self.wait_for(lambda: self.is_whole and self.hosts == 1 + others, START_S)
        self.address = f"{first.address}:{GRPC_PORT}"

    def join(self, name: str) -> Host:
        """Another host."""
        host = self._hosts.add(name)
        self._ray(host, OTHER_HOSTS, f"--address={self._address}")
        self.others.append(host)
        return host

    def ray_of(self, host: Host) -> subprocess.Popen[str]:
        """The process that is Ray on a host, which may end from now on."""
        ray = self._rays[host.name]
        self._may_end.add(ray.pid)
        return ray

    def drain(self, host: Host) -> float:
        """End the Ray of a host as a pod is ended; the seconds until it has gone."""
        ray, began = self.ray_of(host), time.monotonic()
        ray.terminate()
        ray.wait(DRAIN_S + 30)
        return time.monotonic() - began

    @property
    def _logs(self) -> Path:
        return self._folder / "session_latest" / "logs" / "serve"

    @property
    def is_whole(self) -> bool:
        """Whether all replicas are there, as far as Serve knows."""
        statuses = [line for line in self.said if "whole" in line]
        return statuses[-1:] == ["whole"]

    @property
    def hosts(self) -> int:
        """How many Ray counts."""
        counts = [int(line.split()[1]) for line in self.said if line.startswith("hosts")]
        return counts[-1] if counts else 0

    def denoisers(self) -> dict[str, Replica]:
        """By their ids in Serve."""
        return {found.id: found for found in replicas(self._logs) if found.deployment == "Denoiser"}

    def copies(self, session: pb.Session) -> list[str]:
        """The denoisers that have a copy of a session, as they log it: one whose link is down can tell nobody."""
        made = Counter[int]()
        for line in log_lines(self._logs, "Denoiser"):
            if line.get("session") == session.id:
                made[line["process"]] += {"session opened": 1, "session ended": -1}.get(line["message"], 0)
        return [name for name, found in self.denoisers().items() for _ in range(made[found.pid])]

    def host_of(self, session: pb.Session) -> Host:
        """Where a session's denoiser is."""
        return self._hosts.of(self.denoisers()[session.replica].pid)

    def wait_for(self, is_so: Callable[[], bool], seconds: float) -> None:
        """Wait until something is so. Raises AssertionError if it is not in time, or a process has ended."""
        until = time.monotonic() + seconds
        while not is_so():
            watched = [process for process in self._started if process.pid not in self._may_end]
            ended = [process.args for process in watched if process.poll() is not None]
            assert not ended, f"it has ended: {ended}"
            assert time.monotonic() < until, f"not within {seconds:g} s; the server said {self.said}"
            time.sleep(0.2)

    def _ray(self, host: Host, kind: str, *options: str) -> None:
        """Start Ray on a host. Two at once would take the same names for sockets in their folder."""
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *options),
            *(f"--node-ip-address={host.address}", f'--resources={{"{kind}": 1}}'),
            *("--num-cpus=4", "--object-store-memory=100000000"),
        ]
        log = self._folder / f"{host.name}.log"
        with log.open("w") as output:
            ray = host.popen(command, env=self._environment, stdout=output, stderr=subprocess.STDOUT)
        self._started.append(ray)
        self._rays[host.name] = ray
        self.wait_for(lambda: "Ray runtime started" in log.read_text(), START_S)

    def _listen(self, server: subprocess.Popen[str]) -> None:
        assert server.stdout is not None
        self.said.extend(line.strip() for line in server.stdout)
