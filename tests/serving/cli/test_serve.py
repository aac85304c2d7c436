"""What `longtake serve` says before there is a server, and where it says that one is."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from serving.cli.main import main
from serving.config import ServerConfig
from serving.deployments.server_process import free_ports, port_options
from serving.launch import supervisor
from serving.launch.running import Running

REFUSED_S = 120
"""An error at the start is said before anything of a server runs, which would go on for longer."""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "nope"], "unknown model 'nope'; known: "),
        (["--model", "longlive-1.3b", "--models-dir", "nowhere"], "longlive-1.3b is not in nowhere"),
        (["--tokens", "nowhere"], "the tokens file 'nowhere' cannot be read"),
        (["--slots", "0"], "slots is '0': input should be greater than or equal to 1"),
        (["--lora", "/nowhere"], "/nowhere cannot be read: No such file or directory"),
        (["--bogus"], "unrecognized arguments: --bogus; see `longtake --help`"),
        (["--slots"], "argument --slots: expected one argument; see `longtake serve --help`"),
        (["--insecure=maybe"], "argument --insecure/--no-insecure: ignored explicit argument 'maybe'; see"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_keeps_a_server_from_starting_is_one_sentence(options: list[str], said: str) -> None:
    command = [sys.executable, "-m", "serving.cli.main", "serve", *port_options(free_ports()), *options]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=REFUSED_S)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"longtake: {said}")
    assert refused.stderr.count("\n") == 1


def said_by(folder: Path, *options: str) -> str:
    """What is printed of a server that starts at once."""

    def serve(config: ServerConfig, started: Callable[[Running], None], stopping: Callable[[], None]) -> None:
        started(Running(folder, "http://127.0.0.1:9090/metrics", "127.0.0.1:6379"))

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
        patch.setattr(supervisor, "serve", serve)
        assert main(["serve", *options, "--recordings", str(folder)]) == 0
    return said.getvalue()


def test_addresses_of_ipv6_are_printed_as_browsers_and_clients_take_them(tmp_path: Path) -> None:
    ports = free_ports()
    said = said_by(tmp_path, "--host", "::1", *port_options(ports))
    assert f"gRPC     [::1]:{ports.grpc}\npage     http://[::1]:{ports.http}/\n" in said


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        ([], ", nothing else; Ray's"),
        (["--host", "0.0.0.0", "--tokens", "{}/tokens"], ", nothing else; Ray's"),
        (["--host", "0.0.0.0", "--insecure"], ", gRPC and the page; Ray's"),
    ],
    ids=["this machine", "tokens", "everybody"],
)
def test_what_other_machines_reach_without_a_token_is_said_of_every_host(
    tmp_path: Path, options: list[str], reached: str
) -> None:
    (tmp_path / "tokens").write_text("anna secret\n")
    said = said_by(tmp_path, *(option.format(tmp_path) for option in options), *port_options(free_ports()))
    (line,) = [line for line in said.splitlines() if line.startswith("open to other machines, without a token: ")]
    assert f"metrics (that port, and Ray's 44217 and 44227){reached}" in line
    assert ("INSECURE" in said) == ("page" in reached)
