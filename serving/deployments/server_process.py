"""A server on this machine for as long as a program needs one: `longtake serve` in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from serving.errors import ServingError

STOP_S = 60
"""The longest that a server may take to let its sessions go."""

LAST_LINE = "logs"
"""What the last line begins with that a server prints when it is there."""


class LocalServer(NamedTuple):
    """Where it answers, `host:port`, where its page is, and its process, which is the parent of all others."""

    address: str
    page: str
    pid: int


@contextmanager
def local_server(options: Sequence[str] = ()) -> Iterator[LocalServer]:
    """Start a server on free ports; it is stopped with the block. Raises ServingError where it does not start."""
    command = [sys.executable, "-m", "serving.cli.main", "serve", *options]
    for name in ("--grpc-port", "--http-port", "--metrics-port"):
        command += [name, str(free_port())]
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


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
