"""The server in a Ray cluster that is there already: `import_path` of its Serve config leads to `application`.

What a Serve config says by itself, replicas and ports, is refused among its `args`; so is what concerns the
machine that `longtake serve` runs on. The process that builds the application has no graphics card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from ray import serve

from engines.config.validation import require
from engines.errors import ConfigError
from serving.config import ServerConfig, problem_of
from serving.deployments.app import build
from serving.weights.catalog import models_folder
from serving.weights.loader import require_model

REPLICAS = "num_replicas or autoscaling_config of a deployment"

SAID_ELSEWHERE: Mapping[str, str] = {
    "address": "the cluster that its config is put to",
    "managers": REPLICAS,
    "denoisers": REPLICAS,
    "decoders": REPLICAS,
    "text_encoders": REPLICAS,
    "host": "http_options and grpc_options",
    "grpc_port": "grpc_options",
    "http_port": "http_options",
    "metrics_port": "--metrics-export-port of `ray start`",
    "preset": "the settings that a preset stands for, one by one",
}
"""Settings of `longtake serve` that are none here, and what says the same."""

EVERYWHERE = "0.0.0.0"


def application(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve config, out of settings by their names in `ServerConfig`.

    Raises ConfigError, ModelError or WeightsError, which Serve shows as the application's message.
    """
    for name, instead in SAID_ELSEWHERE.items():
        require(name not in args, f"{name} is no setting of an application; say it by {instead}")
    require("device" in args, "device is missing: the process that reads the settings may have other devices")
    try:
        config = ServerConfig(**args, host=EVERYWHERE, preset="none")
    except ValidationError as error:
        raise ConfigError(problem_of(error)) from None
    is_sized = config.stages == "shared" or config.decoder_slots is not None
    require(is_sized, "decoder_slots is missing, which says how many sessions a video decoder may have")
    require_model(config.model, models_folder(config.models_dir), config.codec, config.lora_files)
    return build(config)


def settings_schema() -> dict[str, Any]:
    """A JSON schema of `args`, closed: a key that is no setting is an error. A description is that of `--help`."""
    schema = ServerConfig.model_json_schema()
    for name in SAID_ELSEWHERE:
        del schema["properties"][name]
    return schema
