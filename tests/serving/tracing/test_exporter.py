"""Which exporter the environment sets, and what is said of one that cannot be had."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engines.errors import ConfigError
from serving.tracing import exporter
from serving.tracing.exporter import ENDPOINTS, PROTOCOLS, check_exporter, endpoint, exporting_tracer
from serving.tracing.tracer import UNTRACED

HERE = "http://127.0.0.1:4318"
IMPORTS = "import sys, serving.deployments.replicas.denoiser; print('opentelemetry.exporter.otlp' in sys.modules)"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ENDPOINTS, *PROTOCOLS, "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)


def test_without_an_endpoint_nothing_is_traced_nor_imported() -> None:
    assert exporting_tracer() is UNTRACED
    ran = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_an_exporter_that_is_switched_off_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINTS[1], HERE)
    assert endpoint() == HERE
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert exporting_tracer() is UNTRACED


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ENDPOINTS[1], HERE)
    check_exporter()
    monkeypatch.setattr(exporter, "PACKAGE", "opentelemetry.exporter.none.such")
    with pytest.raises(
        ConfigError, match=r"sent to http://127.0.0.1:4318, .* run `pip install 'longtake\[otel\]'`"
    ):
        check_exporter()


def test_a_protocol_that_is_not_spoken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINTS[0], HERE)
    monkeypatch.setenv(PROTOCOLS[1], "grpc")
    with pytest.raises(ConfigError, match=r"http/protobuf only, and .* 'grpc'"):
        check_exporter()
