"""By which names processes are told apart."""

from __future__ import annotations

import pytest

from benchmarks.harness.processes import name_of


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("ray::ServeReplica:longtake:Denoiser", "Denoiser"),
        ("ray::ServeReplica:longtake:SessionManager.handle_request", "SessionManager"),
        ("ray::ServeController.listen_for_change", "ServeController"),
        ("ray::ProxyActor", "ProxyActor"),
        ("ray::DashboardAgent", "DashboardAgent"),
        ("ray::RuntimeEnvAgent", "RuntimeEnvAgent"),
        ("/venv/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp", "gcs_server"),
        ("/venv/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp", "raylet"),
        ("/venv/bin/python -u /venv/ray/_private/log_monitor.py --session-dir=/tmp", "log_monitor"),
        ("/venv/bin/python3.11 -m serving.deployments.cluster_process", "cluster_process"),
    ],
)
def test_each_process_of_a_server_has_a_name_of_its_own(command: str, name: str) -> None:
    assert name_of(command.split()) == name
