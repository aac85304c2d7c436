"""The image, really built on a Debian of today, and what runs in it: some five minutes on two cores."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from serving.deployments.server_process import free_ports, port_options
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.image import builder
from tests.image.builder import Builder, Container
from tests.serving.footage import played
from tests.serving.live.conftest import said
from tests.serving.live.scenes import NOON, chunks, create, start, watch

ROOT = Path(__file__).parents[2]
BASE, IMAGE = "docker.io/library/debian:bookworm-slim", "localhost/longtake:test"

WHY_NOT = builder.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with tempfile.TemporaryDirectory(prefix="longtake-image-") as folder:
        images = Builder(Path(folder))
        images.make_base(BASE)
        # torch's wheels come from where this machine's pip has all others.
        images.build(ROOT, IMAGE, BASE=BASE, TORCH_CPU_INDEX="")
        with images.container(IMAGE) as running:
            yield running


def test_keeps_nothing_secret_of_where_it_was_built(container: Container) -> None:
    assert not [*container.root.glob("etc/pip.conf"), *container.root.rglob("auth_token")]


def test_is_a_user_whose_home_and_folders_are_writable(container: Container) -> None:
    assert container.run("bash", "-c", "touch ~/a /models/a /recordings/a /tmp/a && id -u") == "1000"


def test_has_what_the_operator_and_triton_call(container: Container) -> None:
    programs = ("wget", "bash", "grep", "gcc", "ray", "python", "longtake")
    assert len(container.run("which", *programs).splitlines()) == len(programs)
    container.run("bash", "-c", "echo '#include <Python.h>' | gcc -I /usr/include/python3.11 -fsyntax-only -xc -")


def test_finds_its_programs_in_a_login_shell(container: Container) -> None:
    assert container.run("bash", "-lc", "python -c 'import ray, sys; print(sys.prefix)'") == "/opt/longtake"


def test_has_versions_that_agree(container: Container) -> None:
    container.run("/opt/longtake/bin/pip", "check")


def test_lists_models(container: Container) -> None:
    assert "longlive-1.3b" in container.run("longtake", "models")


def test_makes_a_film(container: Container) -> None:
    make = "longtake generate film.txt -o /recordings/film.mp4 --seconds 2"
    container.run("bash", "-c", f"echo '{NOON}' > film.txt && {make}")
    assert len(played(str(container.root / "recordings" / "film.mp4")).times) == 33


def test_serves_when_told_no_more_than_where(container: Container) -> None:
    command = ("longtake", "serve", "--host", "127.0.0.1", *port_options(free_ports()))
    with container.running(*command) as errors, grpc.insecure_channel(said([], errors)["gRPC"]) as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
        session = create(stub)
        start(stub, session)
        assert chunks(watch(stub, session), 21)


def test_starts_ray_as_the_operator_does_and_answers_its_probe(container: Container) -> None:
    gcs, dashboard, agent = free_ports()
    ports = f"--port={gcs} --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
    with container.running("bash", "-c", f"ulimit -n 65536; ray start --head --block --num-cpus=0 {ports}"):
        container.run("bash", "-c", f"{_wget(agent, 'api/local_raylet_healthz')} | grep success")
        assert (
            json.loads(container.run("bash", "-c", _wget(dashboard, "api/serve/applications/")))["applications"]
            == {}
        )


def _wget(port: int, path: str) -> str:
    """A request that is tried again until there is an answer."""
    return f"wget --quiet --tries 60 --waitretry 1 --retry-connrefused -O - http://localhost:{port}/{path}"
