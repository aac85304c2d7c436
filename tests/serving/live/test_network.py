"""What another machine reaches of a server: both are network namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.harness.namespaces import Host, Hosts, why_not

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[3]
GRPC, PAGE, METRICS = 9000, 8000, 8002
RAY_METRICS = (44217, 44227)
REFUSED = {"UNAUTHENTICATED", "401"}
NOT_THERE = {"UNIMPLEMENTED", "UNAVAILABLE"}
"""No such method; or no gRPC."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Hosts() as made:
        yield made


@contextmanager
def served(host: Host, folder: Path, *options: str) -> Iterator[None]:
    """`longtake serve` on a host, on its usual ports."""
    command = (sys.executable, "-m", "serving.cli.main", "serve", "--recordings", str(folder), *options)
    process = host.popen(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("logs"):
            break
    assert process.poll() is None, said
    yield
    process.terminate()
    process.communicate(timeout=60)


def listening(host: Host) -> list[int]:
    """The ports of a host on which somebody listens."""
    process = host.popen(("ss", "--listening", "--tcp", "--numeric", "--no-header"), stdout=subprocess.PIPE)
    output, _ = process.communicate()
    return sorted({int(line.split()[3].rpartition(":")[2]) for line in output.splitlines()})


def reached(stranger: Host, host: Host, ports: list[int]) -> dict[int, dict[str, str]]:
    """Which of the ports are open to the stranger, and what becomes of what it asks each of them."""
    command = (sys.executable, "-m", "tests.serving.live.stranger", host.address, *map(str, ports))
    process = stranger.popen(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE)
    output, _ = process.communicate()
    return {int(port): answers for port, answers in json.loads(output).items()}


def test_another_machine_gets_metrics_of_a_server_and_all_else_asks_for_a_token(
    hosts: Hosts, tmp_path: Path
) -> None:
    home, stranger = hosts.add("home"), hosts.add("stranger")
    with served(home, tmp_path):
        ports = listening(home)
        assert {GRPC, PAGE, METRICS} <= set(ports)
        found = reached(stranger, home, ports)
    assert found.keys().isdisjoint({GRPC, PAGE})
    of_ray = found.keys() - {METRICS, *RAY_METRICS}
    assert len(of_ray) >= 9
    answers = {port: set(found[port].values()) - NOT_THERE for port in of_ray}
    assert all(said and said <= REFUSED for said in answers.values()), answers


def test_a_server_that_was_told_to_lets_other_machines_in(hosts: Hosts, tmp_path: Path) -> None:
    home, stranger = hosts.add("open"), hosts.add("guest")
    with served(home, tmp_path, "--host", "0.0.0.0", "--insecure"):
        found = reached(stranger, home, [GRPC, PAGE])
    assert found[GRPC]["/longtake.v1.Sessions/ListSessions"] == "OK"
    assert found[PAGE]["/"] == "200"
