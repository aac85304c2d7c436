"""`longtake serve --address`: a server in a Ray cluster that is there already, and is as it was when it ends."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from serving.deployments.server_process import ServerPorts, free_ports, port_options
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.conftest import said
from tests.serving.live.scenes import chunks, create, frames_of, start, watch

pytestmark = pytest.mark.slow

START_S, END_S = 120, 60
VERSION = "import json, ray; from ray.experimental import internal_kv as kv; \
ray.init('{address}', log_to_driver=False); key = 'CLUSTER_METADATA'; \
said = json.loads(kv._internal_kv_get(key, namespace='cluster')) | {changed}; \
kv._internal_kv_put(key, json.dumps(said), overwrite=True, namespace='cluster')"
"""A program after which a cluster says that it has another version of Ray."""


@dataclass(frozen=True)
class RayHead:
    """A cluster of one node, and the ports that servers in it are given."""

    address: str
    ports: ServerPorts
    environment: Mapping[str, str]
    recordings: Path

    def neighbour(self, verb: str) -> dict[str, list[str]]:
        """See `neighbour.py`."""
        where = (self.address, str(self.ports.http), str(self.ports.grpc), verb)
        command = (sys.executable, "-m", "tests.serving.live.neighbour", *where)
        answer = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=START_S)
        assert answer.returncode == 0, answer.stderr
        found: dict[str, list[str]] = json.loads(answer.stdout)
        return found

    @property
    def neighbour_answers(self) -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports.http}/neighbour") as answer:
            return bool(answer.read() == b"neighbour")

    def command(self, *options: str) -> list[str]:
        longtake = (sys.executable, "-m", "serving.cli.main", "serve", "--address", self.address)
        return [*longtake, *port_options(self.ports), "--recordings", str(self.recordings), *options]

    def refused(self, *options: str, **environment: str) -> str:
        """The one line that a server says that cannot be."""
        answer = subprocess.run(
            self.command(*options), env={**self.environment, **environment}, capture_output=True, text=True,
            timeout=START_S,
        )  # fmt: skip
        assert answer.returncode == 2, answer.stderr
        assert answer.stderr.splitlines()[-1].startswith("longtake: the server did not start: "), answer.stderr
        return answer.stderr.splitlines()[-1]

    @contextmanager
    def serving(self, *options: str) -> Iterator[sessions_pb2_grpc.SessionsStub]:
        """A server that is ended by Ctrl-C."""
        process = subprocess.Popen(self.command(*options), env=self.environment, stderr=subprocess.PIPE, text=True)
        with process:
            output: list[str] = []
            try:
                assert process.stderr is not None
                words = said(output, process.stderr)
                with grpc.insecure_channel(words["gRPC"]) as channel:
                    yield sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
                process.send_signal(signal.SIGINT)
                assert process.wait(END_S) == 0, "".join(output)
            finally:
                process.terminate()


def kill_tree(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        for found in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
            found.kill()


@pytest.fixture
def head(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A cluster with 3 CPUs that asks for a token."""
    ray, log = free_ports(), tmp_path / "head.log"
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = known | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--port={ray.grpc}", f"--metrics-export-port={ray.metrics}", "--include-dashboard=false"),
        *("--num-cpus=3", "--object-store-memory=100000000", f"--temp-dir={tmp_path_factory.mktemp('ray')}"),
        "--node-ip-address=127.0.0.1",
    ]
    with (
        log.open("w") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            until = time.monotonic() + START_S
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            recordings = tmp_path / "recordings"
            yield RayHead(f"127.0.0.1:{ray.grpc}", free_ports(), environment, recordings)
            assert process.poll() is None, log.read_text()
        finally:
            kill_tree(process.pid)


def streams(stub: sessions_pb2_grpc.SessionsStub) -> bool:
    session = create(stub)
    start(stub, session)
    return frames_of(chunks(watch(stub, session), 33)) == list(range(33))


def test_a_server_alone_leaves_nothing_in_the_cluster(head: RayHead) -> None:
    with head.serving() as stub:
        assert head.neighbour("status")["applications"] == ["longtake"]
        assert streams(stub)
        assert "the application longtake runs in the Ray cluster" in head.refused()
    assert head.neighbour("status") == {"applications": [], "actors": []}


def test_other_applications_are_there_before_it_and_after_it(head: RayHead) -> None:
    with head.serving():
        head.neighbour("deploy")
    assert head.neighbour("status")["applications"] == ["neighbour"]
    assert head.neighbour_answers
    with head.serving() as stub:
        assert streams(stub)
        assert head.neighbour_answers
    assert head.neighbour("status")["applications"] == ["neighbour"]
    assert head.neighbour_answers


def test_a_server_that_is_killed_takes_its_application_along(head: RayHead) -> None:
    with subprocess.Popen(head.command(), env=head.environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said([], process.stderr)
        process.kill()
    until = time.monotonic() + END_S
    while (left := head.neighbour("status"))["actors"]:
        assert time.monotonic() < until, left
        time.sleep(1)


def test_what_cannot_be_served_is_said_in_one_sentence_with_the_remedy(head: RayHead) -> None:
    many = head.refused("--denoisers", "9")
    assert "needs 5 CPU where 3 of 3 are free in the Ray cluster" in many
    assert "take fewer replicas (--managers, --denoisers" in many
    assert "needs 1 GPU where 0 of 0 are free" in head.refused("--device", "cuda")
    assert "ConfigError: kernels 'flash-attn': flash-attn needs a CUDA device" in head.refused(
        "--kernels", "flash-attn"
    )
    before = head.neighbour("status")
    assert before == {"applications": [], "actors": []}
    head.neighbour("start")
    without_grpc = head.refused()
    assert "has no serving.deployments.grpc_handlers.add_sessions" in without_grpc
    assert "end it by `serve shutdown`" in without_grpc
    assert head.neighbour_answers
    wrong = head.refused(RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert f"the Ray cluster at {head.address} does not let this process in" in wrong
    other: Any = {"ray_version": "2.55.1", "python_version": "3.12.4"}
    program = VERSION.format(address=head.address, changed=other)
    subprocess.run((sys.executable, "-c", program), env=head.environment, check=True, timeout=START_S)
    words = head.refused()
    assert "has Ray 2.55.1 and Python 3.12.4, and here are Ray " in words
    assert "with the versions of the cluster" in words
