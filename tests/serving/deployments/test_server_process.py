"""The ports that a program finds for a server of its own."""

import socket

import pytest

from serving.deployments import server_process
from serving.deployments.server_process import PORTS, free_ports, port_options
from serving.errors import ServingError


def test_no_two_ports_are_the_same_and_none_that_somebody_listens_on(monkeypatch: pytest.MonkeyPatch) -> None:
    base = free_ports().grpc
    assert base in PORTS
    monkeypatch.setattr(server_process, "PORTS", range(base, base + 8))
    with socket.create_server(("127.0.0.1", base)):
        found = [free_ports() for _ in range(50)]
    assert all(len(set(ports)) == 3 and base not in ports for ports in found)
    assert len({port for ports in found for port in ports}) > 3


def test_too_few_free_ports_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "PORTS", range(PORTS.start, PORTS.start + 2))
    with pytest.raises(ServingError, match="no three free ports from 20000 to 20001; end what listens there"):
        free_ports()


def test_the_options_of_the_command_line_say_the_ports() -> None:
    ports = server_process.ServerPorts(grpc=1, http=2, metrics=3)
    assert port_options(ports) == ["--grpc-port", "1", "--http-port", "2", "--metrics-port", "3"]
