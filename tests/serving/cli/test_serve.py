"""What `longtake serve` says before there is a server, and where it says that one is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.cli.main import main
from serving.config import ServerConfig
from serving.deployments.server_process import free_ports, port_options
from serving.launch import supervisor
from serving.launch.running import Running

REFUSED_S = 5 * 3
"""An error at the start is said within 5 s; here, where other tests may run beside, within three times that."""


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
def test_what_keeps_a_server_from_starting_is_one_sentence_at_once(options: list[str], said: str) -> None:
    command = [sys.executable, "-m", "serving.cli.main", "serve", *port_options(free_ports()), *options]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=REFUSED_S)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"longtake: {said}")
    assert refused.stderr.count("\n") == 1


def test_addresses_of_ipv6_are_printed_as_browsers_and_clients_take_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(config: ServerConfig, started: Callable[[Running], None], stopping: Callable[[], None]) -> None:
        started(Running(tmp_path, "http://127.0.0.1:9090/metrics", "127.0.0.1:6379"))

    monkeypatch.setattr(supervisor, "serve", serve)
    ports = free_ports()
    assert main(["serve", "--host", "::1", *port_options(ports), "--recordings", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert f"gRPC     [::1]:{ports.grpc}\npage     http://[::1]:{ports.http}/\n" in said
