"""What a cluster and Serve would say to what the chart makes, by schemas that are closed: no key is misspelt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import kubernetes_validate
from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
    gRPCOptionsSchema,
)

from benchmarks.harness.chart import serve_config
from tests.helm.values_schema import OBJECT, OBJECTS, SWITCH, TEXT, TEXTS, WORDS, closed, one_of

VERSIONS = ("1.29", "1.37")
"""Of Kubernetes: the oldest and the newest that the chart is held against."""

NUMBER = {"type": "integer"}

SECRET_KEY = closed(valueFrom=closed(secretKeyRef=closed(name=TEXT, key=TEXT)), value=TEXT)
GROUP = {
    "groupName": TEXT, "replicas": NUMBER, "minReplicas": NUMBER, "maxReplicas": NUMBER, "numOfHosts": NUMBER,
    "idleTimeoutSeconds": NUMBER, "suspend": SWITCH, "resources": WORDS, "labels": WORDS, "rayStartParams": WORDS,
    "template": OBJECT, "scaleStrategy": closed(workersToDelete=TEXTS),
}  # fmt: skip
HEAD = {
    "template": OBJECT, "headService": OBJECT, "enableIngress": SWITCH, "resources": WORDS, "labels": WORDS,
    "rayStartParams": WORDS, "serviceType": TEXT,
}  # fmt: skip
AUTOSCALER = closed(
    version=one_of("v1", "v2"), idleTimeoutSeconds=NUMBER,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"), resources=OBJECT,
    image=TEXT, imagePullPolicy=TEXT, env=OBJECTS, envFrom=OBJECTS, volumeMounts=OBJECTS, securityContext=OBJECT,
)  # fmt: skip
CLUSTER = closed(
    rayVersion=TEXT, suspend=SWITCH, managedBy=TEXT, headServiceAnnotations=WORDS, enableInTreeAutoscaling=SWITCH,
    upgradeStrategy=closed(type=one_of("Recreate", "None")), autoscalerOptions=AUTOSCALER,
    authOptions=closed(mode=one_of("token", "disabled"), secretName=TEXT, enableK8sTokenAuth=SWITCH),
    gcsFaultToleranceOptions=closed(
        backend=one_of("redis", "rocksdb"), redisAddress=TEXT, redisUsername=SECRET_KEY, redisPassword=SECRET_KEY,
        externalStorageNamespace=TEXT, storage=OBJECT,
    ),
    networkPolicy=OBJECT, tlsOptions=closed(enabled=SWITCH), historyServerOptions=OBJECT,
    headGroupSpec=closed(**HEAD) | {"required": ["template"]},
    workerGroupSpecs={
        "type": "array",
        "items": closed(**GROUP) | {"required": ["groupName", "minReplicas", "maxReplicas", "template"]},
    },
)  # fmt: skip
RAY_SERVICE = closed(
    rayClusterDeletionDelaySeconds={"type": "integer", "minimum": 0}, excludeHeadPodFromServeSvc=SWITCH,
    upgradeStrategy=closed(
        type=one_of("NewCluster", "NewClusterWithIncrementalUpgrade", "None"), clusterUpgradeOptions=OBJECT,
    ),
    serveService=OBJECT, serveConfigV2=TEXT, suspend=SWITCH, managedBy=TEXT,
    rayClusterConfig=CLUSTER | {"required": ["headGroupSpec"]},
) | {"required": ["rayClusterConfig", "serveConfigV2"]}  # fmt: skip
"""The fields of KubeRay 1.7's types, ray-operator/apis/ray/v1. Pods and Services in it are Kubernetes' own."""

ROUTE = closed(parentRefs=OBJECTS, hostnames=TEXTS, rules=OBJECTS) | {"required": ["parentRefs", "rules"]}
POD_MONITOR = closed(
    jobLabel=TEXT, podTargetLabels=TEXTS, selector=closed(matchLabels=WORDS), namespaceSelector=OBJECT,
    podMetricsEndpoints={"type": "array", "items": closed(port=TEXT, interval=TEXT, path=TEXT, scheme=TEXT)},
) | {"required": ["selector", "podMetricsEndpoints"]}  # fmt: skip

SPECS: Mapping[str, dict[str, Any]] = {
    "ray.io/v1 RayService": RAY_SERVICE,
    "gateway.networking.k8s.io/v1 GRPCRoute": ROUTE,
    "gateway.networking.k8s.io/v1 HTTPRoute": ROUTE,
    "monitoring.coreos.com/v1 PodMonitor": POD_MONITOR,
}
"""Of kinds that are not Kubernetes' own."""


def problem_of(found: Mapping[str, Any]) -> str | None:
    """What a cluster would refuse an object for; None if it would not."""
    try:
        _check(found)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        path = ".".join(str(part) for part in error.path)
        return f"{path}: {error.message}"
    return None


def _check(found: Mapping[str, Any]) -> None:
    spec = SPECS.get(f"{found['apiVersion']} {found['kind']}")
    if spec is None:
        for version in VERSIONS:
            kubernetes_validate.validate(dict(found), version, strict=True)
        return
    jsonschema.validate(found["spec"], spec)
    if found["kind"] == "RayService":
        for part in _parts(found["spec"]):
            _check(part)


def _parts(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a RayService has in it of Kubernetes' own kinds, as objects."""
    yield {"apiVersion": "v1", "kind": "Service", **spec["serveService"]}
    cluster = spec["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        name = {"name": group.get("groupName", "head")}
        yield {"apiVersion": "v1", "kind": "PodTemplate", "metadata": name, "template": group["template"]}


def serve_config_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Serve's config of a RayService, checked by Serve's schema and for keys that Serve would drop in silence."""
    config = serve_config(found)
    ServeDeploySchema.model_validate(config)
    _require_known(config, ServeDeploySchema)
    _require_known(config["http_options"], HTTPOptionsSchema)
    _require_known(config["grpc_options"], gRPCOptionsSchema)
    for application in config["applications"]:
        _require_known(application, ServeApplicationSchema)
        for deployment in application["deployments"]:
            _require_known(deployment, DeploymentSchema)
            _require_known(deployment["ray_actor_options"], RayActorOptionsSchema)
            if (scaling := deployment.get("autoscaling_config")) is not None:
                AutoscalingConfig(**scaling)
                _require_known(scaling, AutoscalingConfig)
                _require_known(scaling["policy"], AutoscalingPolicy)
    return config


def _require_known(found: Mapping[str, Any], schema: type[BaseModel]) -> None:
    unknown = found.keys() - schema.model_fields.keys()
    assert not unknown, f"Serve knows no {', '.join(sorted(unknown))} in {schema.__name__}"
