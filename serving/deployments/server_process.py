"""A server on this machine for as long as a program needs one: `longtake serve` in a process of its own."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from serving.errors import ServingError

STOP_S = 60
"""The longest that a server may take to let its sessions go."""

LAST_LINE = "logs"
"""What the last line begins with that a server prints when it is there."""


PORTS = range(20000, 32768)
"""Ports that neither Ray's workers (10002 to 19999) nor the kernel (from 32768 on) give out by themselves."""


class ServerPorts(NamedTuple):
    """The ports of one server, no two of them the same."""

    grpc: int
    http: int
    metrics: int


class LocalServer(NamedTuple):
    """Where it answers, `host:port`, where its page is, and its process, which is the parent of all others."""

    address: str
    page: str
    pid: int


@contextmanager
def local_server(options: Sequence[str] = ()) -> Iterator[LocalServer]:
    """Start a server on free ports; it is stopped with the block. Raises ServingError where it does not start."""
    command = [sys.executable, "-m", "serving.cli.main", "serve", *options, *port_options(free_ports())]
    # A cluster that is there already is left alone, and Ctrl-C is for the program that stops the server in order.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            yield _started(process)
        finally:
            _stop(process)


def free_ports() -> ServerPorts:
    """Ports of this machine that nobody listens on. Raises ServingError where there are too few."""
    free: list[int] = []
    with ExitStack() as held:
        for port in random.sample(PORTS, len(PORTS)):
            try:
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            free.append(port)
            if len(free) == len(ServerPorts._fields):
                return ServerPorts(*free)
    raise ServingError(f"no three free ports from {PORTS.start} to {PORTS.stop - 1}; end what listens there")


def port_options(ports: ServerPorts) -> list[str]:
    """The options of `longtake serve` that say them."""
    return [word for name, port in ports._asdict().items() for word in (f"--{name}-port", str(port))]


def _started(process: subprocess.Popen[str]) -> LocalServer:
    assert process.stderr is not None
    output: list[str] = []
    for line in process.stderr:
        output.append(line)
        if line.startswith(LAST_LINE):
            # What nobody reads would stop the server once the pipe is full.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            said = {words[0]: words[1] for words in map(str.split, output) if len(words) == 2}
            return LocalServer(said["gRPC"], said["page"], process.pid)
    raise ServingError(f"the server did not start:\n{''.join(output)}")


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise ServingError(f"the server was still there {STOP_S} s after it was told to stop") from None
