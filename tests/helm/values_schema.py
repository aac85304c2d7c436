"""The schema of the chart's values: `python -m tests.helm.values_schema` writes it to `values.schema.json`.

Of `server` it knows what the server itself knows, by its settings; a test holds the file against that.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.harness.chart import CHART
from serving.deployments.cluster_app import settings_schema

FILE = CHART / "values.schema.json"

SAID_BY_THE_CHART = ("tokens", "operator_token", "public_address", "insecure", "models_dir", "recordings")
"""Settings of the server that follow from other values."""

TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}
KEY = {"type": "string", "pattern": "^[-._a-zA-Z0-9]+$"}
SWITCH = {"type": "boolean"}
OBJECT = {"type": "object"}
OBJECTS = {"type": "array", "items": OBJECT}
WORDS = {"type": "object", "additionalProperties": TEXT}
SECONDS = {"type": "integer", "minimum": 1, "maximum": 86400}
COUNT = {"type": "integer", "minimum": 1, "maximum": 1024}
GPUS = {"type": "integer", "minimum": 0, "maximum": 16}
SIZE = {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"}
QUANTITIES = {"type": "object", "additionalProperties": {"type": ["string", "integer", "number"]}}


def closed(**properties: Any) -> dict[str, Any]:
    """An object with these properties and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def one_of(*values: str) -> dict[str, Any]:
    """One of these words."""
    return {"enum": list(values)}


BOUNDS = closed(min=COUNT, max=COUNT)
RESOURCES = closed(requests=QUANTITIES, limits=QUANTITIES)


def _pod(**more: Any) -> dict[str, Any]:
    return closed(
        resources=RESOURCES, gpus=GPUS, sharedMemory=SIZE, nodeSelector=WORDS, tolerations=OBJECTS,
        affinity=OBJECT, topologySpreadConstraints=OBJECTS, priorityClassName=TEXT, labels=WORDS,
        annotations=WORDS, env=OBJECTS, **more,
    )  # fmt: skip


def _volume(**more: Any) -> dict[str, Any]:
    modes = {"type": "array", "minItems": 1, "items": one_of("ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany")}
    return closed(
        existingClaim=TEXT, create=SWITCH, size=SIZE, storageClassName=TEXT, accessModes=modes, **more,
    )  # fmt: skip


def _server(settings: dict[str, Any]) -> dict[str, Any]:
    properties = {name: schema for name, schema in settings["properties"].items() if name not in SAID_BY_THE_CHART}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["model", "device"],
        "properties": _without_defaults(properties),
    }


def _without_defaults(schema: Any) -> Any:
    """Defaults and titles say nothing that is checked, and some are of another machine."""
    if isinstance(schema, list):
        return [_without_defaults(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    dropped = ("default", "title", "format")
    return {
        name: _without_defaults(part)
        for name, part in schema.items()
        if name not in dropped or isinstance(part, dict)
    }


def values_schema() -> dict[str, Any]:
    """The whole schema, draft 2020-12."""
    settings = settings_schema()
    download = closed(
        enabled=SWITCH, model=TEXT, revisions=TEXTS, tinyCodec=SWITCH, quantize=one_of("", "int8", "fp8"),
        gpus=GPUS, tokenSecret=TEXT, resources=RESOURCES,
    )  # fmt: skip
    chart = closed(
        nameOverride=TEXT,
        fullnameOverride=TEXT,
        image=closed(
            repository={"type": "string", "minLength": 1},
            tag=TEXT,
            pullPolicy=one_of("IfNotPresent", "Always", "Never"),
            pullSecrets=TEXTS,
        ),
        insecure=SWITCH,
        tokens=closed(
            existingSecret=TEXT, key=KEY, operatorKey={"type": "string", "pattern": "^[-._a-zA-Z0-9]*$"}
        ),
        ray=closed(authSecret=TEXT, faultTolerance=closed(redisAddress=TEXT, passwordSecret=TEXT)),
        server=_server(settings),
        proxy=one_of("python", "haproxy"),
        replicas=closed(managers=COUNT, denoisers=COUNT, decoders=COUNT, textEncoders=COUNT),
        autoscaling=closed(
            enabled=SWITCH,
            denoisers=BOUNDS,
            decoders=BOUNDS,
            textEncoders=BOUNDS,
            upscaleSeconds=SECONDS,
            downscaleSeconds=SECONDS,
            idlePodSeconds={"type": "integer", "minimum": 120},
        ),
        gpuResource={"type": "string", "pattern": "gpu$|^nvidia\\.com/mig-[0-9]+g\\.[0-9]+gb$"},
        pods=closed(head=_pod(), front=_pod(managersPerPod=COUNT), denoiser=_pod(), decoder=_pod(), text=_pod()),
        serviceAccountName=TEXT,
        shutdown=closed(replicaSeconds=SECONDS, managerSeconds=SECONDS, drainSeconds=SECONDS, podSeconds=SECONDS),
        upgrade=closed(
            strategy=one_of("NewCluster", "None"), deletionDelaySeconds={"type": "integer", "minimum": 0}
        ),
        weights=_volume(download=download),
        recordings=_volume(),
        service=closed(type=one_of("ClusterIP", "NodePort", "LoadBalancer"), annotations=WORDS),
        routes=closed(enabled=SWITCH, parentRefs=OBJECTS, grpcHostnames=TEXTS, pageHostnames=TEXTS),
        networkPolicy=closed(
            enabled=SWITCH, operatorNamespace=TEXT, monitoringNamespace=TEXT, **{"from": OBJECTS}
        ),
        podDisruptionBudget=closed(enabled=SWITCH),
        monitoring=closed(
            podMonitor=closed(
                enabled=SWITCH, interval={"type": "string", "pattern": "^[0-9]+(ms|s|m)$"}, labels=WORDS
            ),
            dashboard=closed(enabled=SWITCH, labels=WORDS),
        ),
    )
    # Helm puts the values that all charts of a release share under `global`.
    chart["properties"]["global"] = OBJECT
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Values of the chart longtake"}
    return head | chart | {"$defs": _without_defaults(settings["$defs"])}


def text() -> str:
    """The file's text."""
    return json.dumps(values_schema(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
