"""The server's application out of a Serve config's `args`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from engines.errors import ConfigError
from serving.config import ServerConfig
from serving.deployments.cluster_app import SAID_ELSEWHERE, application, settings_schema
from serving.errors import ModelError

ARGS: dict[str, Any] = {"device": "cpu", "insecure": True, "slots": 3}


def config_of(args: dict[str, Any]) -> ServerConfig:
    config = application(args)._bound_deployment.init_args[0]
    assert isinstance(config, ServerConfig)
    return config


def test_settings_are_those_of_the_command_line_and_everybody_may_reach_the_server() -> None:
    config = config_of(ARGS | {"limits": {"sessions_per_token": 3}, "sizes": ["160x256"]})
    assert (config.slots, config.limits.sessions_per_token, config.sizes) == (3, 3, ((160, 256),))
    assert (config.host, config.preset) == ("0.0.0.0", "none")


@pytest.mark.parametrize("name", SAID_ELSEWHERE)
def test_what_a_serve_config_says_by_itself_is_no_setting(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is no setting of an application; say it by"):
        application(ARGS | {name: 1})
    assert name not in settings_schema()["properties"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"slotz": 3}, "there is no setting slotz"),
        ({"slots": 0}, "slots is 0"),
        ({"limits": {"pixel": 1}}, "there is no setting limits.pixel"),
        ({"insecure": False}, "there are no tokens"),
        ({"tokens": "/nowhere/tokens"}, "the tokens file '/nowhere/tokens' cannot be read"),
        ({"stages": "separate"}, "decoder_slots is missing"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_words(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        application(ARGS | changed)


def test_weights_that_are_not_there_are_missed_before_any_replica_is_replaced(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{tmp_path}/longlive-1.3b"):
        application(ARGS | {"model": "longlive-1.3b", "models_dir": str(tmp_path)})


def test_a_device_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match="device is missing"):
        application({"insecure": True})


def test_tokens_are_read_from_the_file_that_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("anna secret-a\n")
    config = config_of({"device": "cpu", "tokens": str(tmp_path / "tokens")})
    assert config.tokens.caller("secret-a") == "anna"


def test_the_schema_takes_what_the_server_takes_and_knows_no_other_key() -> None:
    jsonschema.validate(ARGS | {"sizes": ["160x256"], "tokens": "/tokens"}, settings_schema())
    for wrong in ({"slotz": 1}, {"slots": 0}, {"device": "tpu"}, {"limits": {"pixel": 1}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(ARGS | wrong, settings_schema())
