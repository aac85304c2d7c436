"""The processes of `longtake serve`: whatever ends one of them, none is left, and what happened is said."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx2
import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from benchmarks.harness.processes import part_of, tree_of
from engines.config.geometry import FRAMES_PER_SECOND
from serving.deployments.server_process import ServerPorts, free_ports, port_options
from serving.launch.process_tree import is_alive
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.conftest import Server
from tests.serving.live.scenes import frames, playing, seen_by_client, settles

START_S = 120

STOPPED_S, NOTICED_S, SILENT_S = 10 * 2.5, 5 * 2.5, 5 * 3
"""After a signal a server has ended in 10 s; a part that dies is noticed, or made up for, in 5 s. A machine that
has other things to do may take two or three times as long."""


@dataclass(frozen=True)
class Started:
    """A server, and all its processes."""

    command: subprocess.Popen[str]
    ports: ServerPorts
    said: dict[str, str]
    processes: list[psutil.Process]

    def one(self, part: str) -> psutil.Process:
        """The process whose command line, or whose name, has `part` in it."""
        return part_of(self.processes, part)

    def ended(self, within_s: float) -> tuple[int, str]:
        """The exit code and what was said at last, once no process is left. Raises AssertionError if one is."""
        until = time.monotonic() + within_s
        _, said = self.command.communicate(timeout=within_s)
        while left := [process for process in self.processes if is_alive(process)]:
            assert time.monotonic() < until, left
            time.sleep(0.1)
        for port in self.ports:
            with socket.create_server(("127.0.0.1", port)):
                pass
        return self.command.returncode, said


@contextmanager
def served(folder: Path, ports: ServerPorts | None = None) -> Iterator[Started]:
    """`longtake serve` in a process group of its own, on ports of its own or on these."""
    ports = ports or free_ports()
    with starting(folder, ports) as process:
        said = _said(process)
        yield Started(process, ports, said, tree_of(process.pid))


@contextmanager
def starting(folder: Path, ports: ServerPorts) -> Iterator[subprocess.Popen[str]]:
    """One that is not there yet."""
    longtake = str(Path(sys.executable).with_name("longtake"))
    command = [longtake, "serve", *port_options(ports), "--recordings", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def _said(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stderr is not None
    said: dict[str, str] = {}
    for line in process.stderr:
        name, _, rest = line.partition(" ")
        said[name] = rest.strip()
        if name == "logs":
            return said
    raise AssertionError(f"the server did not start: {said}")


ENDINGS: dict[str, Callable[[int], None]] = {
    "Ctrl-C": lambda pid: os.kill(pid, signal.SIGINT),
    "SIGTERM": lambda pid: os.kill(pid, signal.SIGTERM),
    "SIGTERM to its group": lambda pid: os.killpg(pid, signal.SIGTERM),
    "SIGHUP": lambda pid: os.kill(pid, signal.SIGHUP),
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_server_that_is_told_to_end_leaves_no_process_and_no_port(tmp_path: Path, ending: str) -> None:
    with served(tmp_path) as server:
        ENDINGS[ending](server.command.pid)
        assert server.ended(STOPPED_S) == (0, "stopping ...\n")


@pytest.mark.slow
def test_a_killed_command_takes_its_server_along(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        server.command.kill()
        assert server.ended(STOPPED_S) == (-signal.SIGKILL, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("gcs_server", "gcs_server"),
        ("raylet/raylet", "raylet"),
        ("DashboardAgent", "raylet"),  # Ray's agents take it along.
        ("RuntimeEnvAgent", "raylet"),
        ("cluster_process", "the process of its cluster"),
    ],
)
def test_a_server_of_which_a_part_dies_says_so_and_ends(tmp_path: Path, part: str, named: str) -> None:
    with served(tmp_path) as server:
        server.one(part).kill()
        code, said = server.ended(NOTICED_S)
    assert code != 0
    assert said.startswith("longtake: ")
    assert f"{named} (pid " in said
    assert said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("part", ["gcs_server", "raylet"])
def test_a_server_of_which_a_part_dies_as_it_starts_says_so_and_ends(tmp_path: Path, part: str) -> None:
    ports = free_ports()
    with starting(tmp_path, ports) as process:
        found = started_part(process, part)
        time.sleep(1)
        server = Started(process, ports, {}, tree_of(process.pid))
        found.kill()
        code, said = server.ended(NOTICED_S)
    assert code != 0
    (line,) = said.splitlines()[1:]
    assert line.startswith("longtake: the server did not start: ")
    assert line.endswith(" died")
    # Ray may take the other one along at once: then both are named.
    assert f"{part} (pid {found.pid})" in line


def started_part(process: subprocess.Popen[str], part: str) -> psutil.Process:
    """The process of this name, once the server has started it."""
    until = time.monotonic() + START_S
    while not (found := [one for one in tree_of(process.pid) if one.name() == part]):
        assert time.monotonic() < until
        time.sleep(0.2)
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["gcs_server", "raylet"])
@pytest.mark.parametrize("ending", ["Ctrl-C", "SIGTERM"])
def test_a_server_that_is_told_to_end_as_it_starts_leaves_no_process_and_no_port(
    tmp_path: Path, ending: str, part: str
) -> None:
    ports = free_ports()
    with starting(tmp_path, ports) as process:
        started_part(process, part)
        ENDINGS[ending](process.pid)
        code, said = Started(process, ports, {}, tree_of(process.pid)).ended(STOPPED_S)
    assert (code, said.splitlines()[1:]) == (0, ["stopping ..."])


@pytest.mark.slow
def test_a_terminal_that_closes_ends_its_server(tmp_path: Path) -> None:
    terminal, end = os.openpty()
    longtake = [str(Path(sys.executable).with_name("longtake")), "serve", *port_options(free_ports())]
    # `setsid --ctty` makes standard input the terminal of what it starts, as a shell's is.
    command = ["setsid", "--ctty", *longtake, "--recordings", str(tmp_path)]
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        said = b""
        while b"\nlogs" not in said:
            said += os.read(terminal, 4096)
        processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        os.close(terminal)
        assert not psutil.wait_procs(processes, timeout=STOPPED_S)[1]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["ServeController", "ProxyActor"])
def test_a_part_that_serve_can_start_again_is_started_again_under_a_session(tmp_path: Path, part: str) -> None:
    with served(tmp_path) as server, grpc.insecure_channel(server.said["gRPC"]) as channel:
        session = playing(sessions_pb2_grpc.SessionsStub(channel))  # type: ignore[no-untyped-call]
        killed_at: list[float] = []

        def kill() -> None:
            server.one(part).kill()
            killed_at.append(time.monotonic())

        events = asyncio.run(seen_by_client(server.said["gRPC"], session, 105, kill))
        assert frames(events) == list(range(105))
        assert time.monotonic() - killed_at[0] < (105 - 45) / FRAMES_PER_SECOND + SILENT_S


@contextmanager
def page(server: Started, query: str = "fps=16") -> Iterator[ClientConnection]:
    """The WebSocket of the server's page."""
    with connect(f"ws://127.0.0.1:{server.ports.http}/ws?{query}", max_size=None) as socket:
        yield socket


def answers(server: Started) -> bool:
    """Whether the page is there, and its WebSocket says the first thing that it has to say."""
    with suppress(ConnectionError, InvalidMessage, InvalidStatus, ConnectionClosed), page(server) as socket:
        return '"state"' in socket.recv(timeout=SILENT_S, decode=True)
    return False


@pytest.mark.slow
def test_a_proxy_that_is_killed_under_a_page_is_there_for_it_again(tmp_path: Path) -> None:
    with served(tmp_path) as server, page(server) as socket:
        socket.recv()
        server.one("ProxyActor").kill()
        with pytest.raises(ConnectionClosed):
            deque(socket, maxlen=0)
        assert settles(lambda: answers(server))


@pytest.mark.slow
def test_a_server_starts_on_the_ports_of_one_that_has_just_ended_under_a_page(tmp_path: Path) -> None:
    with served(tmp_path) as before, page(before) as socket:
        socket.recv()
        before.command.terminate()
        before.ended(STOPPED_S)
    with served(tmp_path, before.ports) as after:
        assert answers(after)


def by_grpc(server: Server) -> None:
    with pytest.raises(grpc.RpcError):
        server.stub.GetSession(pb.GetSessionRequest(session_id="nobody's"))


def in_noise(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/longtake.v1.Sessions/GetSession")(b"\xff\xff\xff")  # type: ignore[call-arg]


def by_http(server: Server) -> None:
    assert httpx2.get(f"http://127.0.0.1:{server.http_port}/nobody's").status_code == 404


def by_websocket(server: Server) -> None:
    with connect(f"ws://127.0.0.1:{server.http_port}/ws?session=nobody's") as talk:
        assert json.loads(talk.recv())["type"] == "error"


@pytest.mark.parametrize(
    ("ask", "reason", "word"),
    [
        (by_grpc, "SESSION_NOT_FOUND", "nobody's"),
        (in_noise, "INVALID_REQUEST", "no message"),
        (by_http, "INVALID_REQUEST", "nobody's"),
        (by_websocket, "SESSION_NOT_FOUND", "nobody's"),
    ],
)
def test_a_refused_request_is_one_line_of_the_logs(
    server: Server, ask: Callable[[Server], None], reason: str, word: str
) -> None:
    before = lines(server.logs)
    ask(server)
    time.sleep(1)
    refused = [line for line in lines(server.logs) - before if word in line]
    assert len(refused) == 1
    assert {"message": "request refused", "reason": reason}.items() <= json.loads(refused[0]).items()


def lines(logs: Path) -> set[str]:
    return {line for file in logs.glob("*.log") for line in file.read_text().splitlines()}


def test_a_second_server_on_the_same_port_does_not_start(server: Server) -> None:
    port = server.address.rpartition(":")[2]
    command = [sys.executable, "-m", "serving.cli.main", "serve", "--grpc-port", port]
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_S)
    assert second.returncode == 2
    assert second.stderr.startswith(f"longtake: the gRPC port {port} of 127.0.0.1 cannot be had")
    assert second.stderr.count("\n") == 1


def test_other_machines_do_not_reach_a_server_that_is_not_meant_for_them(server: Server) -> None:
    found = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries
             if entry.family == socket.AF_INET and not entry.address.startswith("127.")]  # fmt: skip
    if not found:
        pytest.skip("this machine has no other address than its loopback's")
    for port in (int(server.address.rpartition(":")[2]), server.http_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((found[0], port))
