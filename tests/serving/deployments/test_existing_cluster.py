"""What has no place beside what Serve has in a cluster; `tests/serving/live/test_address.py` has real ones."""

from __future__ import annotations

from typing import Any

import pytest

from engines.errors import ConfigError
from serving.config import ServerConfig
from serving.deployments.app import resources
from serving.deployments.existing_cluster import ServeThere, require_fit
from serving.deployments.local_cluster import SERVICES

ADDRESS = "10.0.0.1:6379"
THERE = ServeThere(8000, 9000, False, frozenset(SERVICES), {"other": "/other"})


def fits(there: ServeThere, **settings: Any) -> None:
    require_fit(ServerConfig.model_validate({"address": ADDRESS, **settings}), there)


def test_a_server_fits_beside_other_applications() -> None:
    fits(THERE)
    fits(THERE._replace(is_open=True), insecure=True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"routes": {"longtake": "/"}}, f"the application longtake runs in the Ray cluster at {ADDRESS} already"),
        ({"http_port": 8765}, "HTTP port 8765 and the gRPC port 9000, .*; say --http-port 8765 --grpc-port 9000"),
        ({"services": frozenset()}, "has no .*add_sessions and .*add_health among its grpc_servicer_functions"),
        (
            {"routes": {"other": "/"}},
            "the application other in .* has the route /, .*; give it another route_pref",
        ),
        ({"is_open": True}, "lets other machines in on the gRPC port 9000, .* give tokens or say --insecure"),
    ],
)
def test_what_has_no_place_is_named_with_the_remedy(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fits(THERE._replace(**changed))


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"device": "cpu"}, {"CPU": 1.0}),
        ({"device": "cuda", "denoisers": 3, "managers": 2}, {"CPU": 2.5, "GPU": 3.0}),
        ({"device": "cuda", "stages": "separate", "decoders": 2}, {"CPU": 2.5, "GPU": 4.0}),
        ({"device": "cuda", "stages": "separate", "text_device": "cpu"}, {"CPU": 2.0, "GPU": 2.0}),
    ],
)
def test_a_server_counts_what_its_replicas_take(settings: dict[str, Any], needed: dict[str, float]) -> None:
    assert resources(ServerConfig.model_validate(settings)) == needed
