"""What KubeRay's operator does with a RayService: Ray's head as a process of its own, and its Serve config put."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness.chart import INSECURE, Rendered, serve_config
from serving.deployments.server_process import free_ports

QUICK = (*INSECURE, "shutdown.replicaSeconds=60", "shutdown.managerSeconds=90")
SCALED = (*QUICK, "autoscaling.enabled=true", "autoscaling.downscaleSeconds=3")
VALUES = (*QUICK, "replicas.managers=2")
"""Of a server for which a head with the resources GROUPS has room."""
TWO = (*VALUES, "replicas.denoisers=2")
GROUPS = {"front": 4, "denoiser": 3}
START_S = 120
APPLICATIONS = "/api/serve/applications/"


@dataclass(frozen=True)
class Operated:
    """A head that runs, and where its REST API and the server's gRPC are."""

    rest: str
    grpc: str
    token: str
    recordings: Path
    ports: Mapping[str, int]

    def put(self, rendered: Rendered, **args: Any) -> None:
        """Put the Serve config of a RayService, `args` beside its own."""
        config = serve_config(rendered.ray_service)
        config["http_options"]["port"], config["grpc_options"]["port"] = self.ports["http"], self.ports["grpc"]
        config["applications"][0]["args"] |= {"recordings": str(self.recordings), **args}
        self._call("PUT", config)

    @property
    def application(self) -> Mapping[str, Any]:
        """What Serve says of the server."""
        found: Mapping[str, Any] = self._call("GET")["applications"].get("longtake", {"status": "NOT_STARTED"})
        return found

    def replicas(self, deployment: str) -> set[str]:
        """The ids of those that run."""
        there = self.application.get("deployments", {}).get(deployment, {}).get("replicas", [])
        return {replica["replica_id"] for replica in there if replica["state"] == "RUNNING"}

    def all_replicas(self, *deployments: str) -> set[str]:
        """The ids of those that there are, those that start or are taken away too."""
        found = self.application.get("deployments", {})
        return {
            replica["replica_id"] for name in deployments for replica in found.get(name, {}).get("replicas", [])
        }

    def replace(self, rendered: Rendered) -> None:
        """Put another config, and wait until it has replaced every denoiser and every manager."""
        before = self.all_replicas("Denoiser", "SessionManager")

        def is_replaced() -> bool:
            now = self.all_replicas("Denoiser", "SessionManager")
            return len(now - before) == len(now) == len(before)

        self.put(rendered)
        self.wait_for(is_replaced)
        self.wait_until_running()

    def scale(self, rendered: Rendered, denoisers: int) -> None:
        """Put a config of so many denoisers, and wait until there are as many and no more."""
        self.put(rendered)
        self.wait_for(lambda: len(self.replicas("Denoiser")) == len(self.all_replicas("Denoiser")) == denoisers)

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so. Raises AssertionError, with what Serve says, if it is not in two minutes."""
        until = time.monotonic() + START_S
        while not is_so():
            assert time.monotonic() < until, self.application
            time.sleep(0.2)

    def wait_until_running(self) -> None:
        """Wait until Serve says that the server runs."""
        self.wait_for(lambda: self.application["status"] == "RUNNING")

    def _call(self, method: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.rest + APPLICATIONS, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None


@contextmanager
def operated(rendered: Rendered, folder: Path, resources: Mapping[str, int]) -> Iterator[Operated]:
    """Start a head as in the pod of a RayService, with the resources of its worker groups."""
    ports, more, token = free_ports(), free_ports(), secrets.token_hex(32)
    (container,) = rendered.pod("head")["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--port={more.grpc}", "--include-dashboard=true", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={more.http}", f"--metrics-export-port={more.metrics}"),
        *(f"--resources={json.dumps(resources)}", "--num-cpus=8", "--object-store-memory=100000000"),
        f"--temp-dir={folder}",
    ]
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    log = folder.with_suffix(".log")
    with log.open("w") as output, subprocess.Popen(
        command, env=known | environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
    ) as head:  # fmt: skip
        try:
            found = Operated(
                f"http://127.0.0.1:{more.http}", f"127.0.0.1:{ports.grpc}", token, folder / "recordings",
                ports._asdict(),
            )  # fmt: skip
            found.recordings.mkdir()
            _wait_for_rest(found, head, log)
            yield found
        finally:
            _kill_tree(psutil.Process(head.pid))


def _kill_tree(root: psutil.Process) -> None:
    """A head that is asked to end would drain its node first, for minutes."""
    for process in [*root.children(recursive=True), root]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _wait_for_rest(found: Operated, head: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        assert head.poll() is None, log.read_text()
        try:
            found._call("GET")
        except OSError:
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        else:
            return
