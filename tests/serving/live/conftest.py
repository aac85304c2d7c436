from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import grpc
import pytest

from benchmarks.harness.browser import Page, browsing
from serving.deployments.server_process import free_ports, port_options
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc

SLOTS = 3
STOP_S = 60


class Server(NamedTuple):
    """`longtake serve` in a process of its own; what it printed says where it is."""

    address: str
    http_port: int
    metrics: str
    logs: Path
    recordings: Path
    stub: sessions_pb2_grpc.SessionsStub


def said(output: list[str], errors: IO[str]) -> dict[str, str]:
    """What the server printed of itself, once it is there; `output` grows for as long as it prints."""
    for line in errors:
        output.append(line)
        if line.startswith("logs "):
            threading.Thread(target=lambda: output.extend(errors), daemon=True).start()
            return {words[0]: words[1] for words in map(str.split, output) if len(words) == 2}
    raise AssertionError(f"the server did not start: {''.join(output)}")


@contextmanager
def serving(recordings: Path, *options: str) -> Iterator[Server]:
    """A real Ray cluster that serves the pocket model. At the end it has stopped by itself, in good order."""
    ports = free_ports()
    command = [
        *(str(Path(sys.executable).with_name("longtake")), "serve", "--lease-s", "20", *options),
        *(*port_options(ports), "--recordings", str(recordings)),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        output: list[str] = []
        try:
            assert process.stderr is not None
            words = said(output, process.stderr)
            with grpc.insecure_channel(words["gRPC"]) as channel:
                stub = sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
                yield Server(words["gRPC"], ports.http, words["metrics"], Path(words["logs"]), recordings, stub)
        finally:
            process.terminate()
            code = process.wait(STOP_S)
    assert code == 0, "".join(output)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server for all tests of this folder that need no other one."""
    with serving(tmp_path_factory.mktemp("recordings"), "--slots", str(SLOTS)) as running:
        yield running


@pytest.fixture
def stub(server: Server) -> Iterator[sessions_pb2_grpc.SessionsStub]:
    """The server without a session, before and after."""
    yield server.stub
    for session in server.stub.ListSessions(pb.ListSessionsRequest()).sessions:
        server.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


@pytest.fixture(scope="module")
def browser(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(f"http://127.0.0.1:{server.http_port}", tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, stub: sessions_pb2_grpc.SessionsStub) -> Iterator[Page]:
    browser.open("#seed=7")
    yield browser
    assert browser.errors() == []
