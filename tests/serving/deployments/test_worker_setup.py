from __future__ import annotations

import logging

import pytest
from ray.serve._private import default_impl
from ray.serve.exceptions import RequestCancelledError

from serving.deployments.worker_setup import worker_setup
from tests.serving.deployments.telemetry.test_logging_config import logged


@pytest.mark.parametrize("name", ["asyncio", "ray.serve"])
def test_a_process_of_the_cluster_logs_no_traceback_of_a_client_that_has_gone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)
    worker_setup("127.0.0.1")()
    assert not logger.filter(logged(RequestCancelledError("a request")))
    assert logger.filter(logged(KeyError("latents")))
