"""What has no place beside what Serve has in a cluster; `tests/serving/live/test_address.py` has real ones."""

from __future__ import annotations

import socket
from typing import Any

import psutil
import pytest
import ray
from ray.serve import Application

from engines.errors import ConfigError
from serving.config import ServerConfig
from serving.deployments.app import build, resources
from serving.deployments.existing_cluster import ServeThere, _is_open, require_fit
from serving.deployments.local_cluster import SERVICES
from serving.hosts import is_loopback

ADDRESS = "10.0.0.1:6379"
THERE = ServeThere(8000, 9000, False, frozenset(SERVICES), {"other": "/other"})


def ends_s(application: Any) -> dict[str, float]:
    """How long the replicas of deployments may go on, by their names."""
    deployment = application._bound_deployment
    others = {argument for argument in deployment.init_args if isinstance(argument, Application)}
    mine = {deployment.name: deployment._deployment_config.graceful_shutdown_timeout_s}
    return mine | {name: seconds for other in others for name, seconds in ends_s(other).items()}


def test_where_nodes_may_be_drained_sessions_have_time_to_move_and_managers_stay_longer() -> None:
    own, others = (ends_s(build(ServerConfig(address=address, stages="separate"))) for address in (None, ADDRESS))
    assert set(own.values()) == {10.0}
    assert others == {"SessionManager": 120.0, "Denoiser": 60.0, "TextEncoder": 60.0, "VideoDecoder": 60.0}


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
    ("host", "family", "reached"),
    [
        ("0.0.0.0", socket.AF_INET, True),
        ("::", socket.AF_INET6, True),
        ("127.0.0.1", socket.AF_INET, False),
        ("::1", socket.AF_INET6, False),
    ],
)
def test_a_port_is_open_where_this_machine_listens_at_any_address_that_others_have(
    host: str, family: socket.AddressFamily, reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [entry for entries in psutil.net_if_addrs().values() for entry in entries
              if entry.family == socket.AF_INET and not is_loopback(entry.address)]  # fmt: skip
    if not others:
        pytest.skip("this machine has no other address than its loopback's")
    # As of `ray start --node-ip-address=127.0.0.1`.
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    with socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::") as there:
        assert _is_open(there.getsockname()[1]) is reached


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
