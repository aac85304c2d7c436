"""What a changed value does to a server that runs: what values.yaml says of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import pytest

from tests.helm.conftest import INSECURE, Chart, Rendered
from tests.helm.schemas import serve_config_of
from tests.helm.values_schema import CHART

Effect = Literal["live", "replaced", "new cluster", "beside"]

BASE = (*INSECURE, "recordings.create=true")

CHANGES: dict[str, str] = {
    "image.tag": "next",
    "image.pullPolicy": "Always",
    "ray.authSecret": "other",
    "ray.faultTolerance.redisAddress": "redis:6379",
    "server.slots": "3",
    "server.lease_s": "20",
    "replicas.managers": "6",
    "replicas.denoisers": "4",
    "autoscaling.enabled": "true",
    "autoscaling.denoisers.min": "2",
    "autoscaling.denoisers.max": "8",
    "autoscaling.decoders.max": "6",
    "autoscaling.textEncoders.max": "2",
    "autoscaling.upscaleSeconds": "5",
    "autoscaling.downscaleSeconds": "600",
    "autoscaling.idlePodSeconds": "300",
    "gpuResource": "amd.com/gpu",
    "pods.denoiser.resources.limits.memory": "9Gi",
    "pods.front.managersPerPod": "1",
    "pods.head.env[0].name": "A",
    "serviceAccountName": "films",
    "shutdown.replicaSeconds": "50",
    "shutdown.managerSeconds": "100",
    "shutdown.drainSeconds": "200",
    "shutdown.podSeconds": "300",
    "upgrade.strategy": "None",
    "upgrade.deletionDelaySeconds": "10",
    "weights.existingClaim": "weights",
    "weights.create": "true",
    "weights.size": "1Gi",
    "recordings.create": "false",
    "recordings.existingClaim": "films",
    "recordings.size": "1Gi",
    "service.type": "LoadBalancer",
    "routes.enabled": "true,routes.parentRefs[0].name=gate",
    "networkPolicy.enabled": "false",
    "networkPolicy.operatorNamespace": "kuberay",
    "podDisruptionBudget.enabled": "false",
    "monitoring.podMonitor.enabled": "true",
    "monitoring.dashboard.enabled": "true",
}

SCALED = ("autoscaling.enabled=true",)
SEPARATE = ("server.stages=separate", "server.decoder_slots=8")
SHOWN_WITH: Mapping[str, tuple[str, ...]] = {
    "autoscaling.denoisers.min": SCALED,
    "autoscaling.denoisers.max": SCALED,
    "autoscaling.decoders.max": (*SCALED, *SEPARATE),
    "autoscaling.textEncoders.max": (*SCALED, *SEPARATE),
    "autoscaling.upscaleSeconds": SCALED,
    "autoscaling.downscaleSeconds": SCALED,
    "autoscaling.idlePodSeconds": SCALED,
    "gpuResource": ("server.device=cuda", "pods.denoiser.gpus=1"),
    "weights.size": ("weights.create=true",),
}
"""What a value needs beside it to do anything."""


def said() -> dict[str, str]:
    """By a value's path, what values.yaml says that a change of it does. What is inside a value has its word."""
    words: dict[str, str] = {}
    path: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        if not (found := re.match(r"( *)([A-Za-z]+):(.*)", line)):
            continue
        indent, name, rest = found.groups()
        path = [*path[: len(indent) // 2], name]
        comment = re.search(r"# (live|replaced|new cluster|beside)\b", rest)
        inherited = words.get(".".join(path[:-1]), "")
        words[".".join(path)] = comment[1] if comment else inherited
    return words


def cluster_hash(rendered: Rendered) -> str:
    """What KubeRay 1.7 compares: a cluster's spec without what may change in place."""
    cluster: Any = deepcopy(rendered.ray_service["spec"]["rayClusterConfig"])
    cluster.pop("upgradeStrategy", None)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for name in ("replicas", "minReplicas", "maxReplicas", "scaleStrategy"):
            group.pop(name, None)
        for name in ("tolerations", "schedulingGates"):
            group["template"]["spec"].pop(name, None)
    return hashlib.sha256(json.dumps(cluster, sort_keys=True).encode()).hexdigest()


def code_version(rendered: Rendered) -> Mapping[str, Any]:
    """What Serve replaces all replicas for, of its config."""
    (application,) = serve_config_of(rendered.ray_service)["applications"]
    found = {name: application.get(name) for name in ("args", "import_path", "runtime_env")}
    policies = [found.get("autoscaling_config", {}).get("policy") for found in application["deployments"]]
    return found | {
        "policies": policies,
        **{deployment["name"]: deployment["ray_actor_options"] for deployment in application["deployments"]},
    }


def effect_of(chart: Chart, value: str, changed: str) -> Effect:
    base = (*BASE, *SHOWN_WITH.get(value, ()))
    before, after = chart.render(*base), chart.render(*base, f"{value}={changed}")
    assert before.objects != after.objects, f"{value} changes nothing"
    if cluster_hash(before) != cluster_hash(after):
        return "new cluster"
    if code_version(before) != code_version(after):
        return "replaced"
    return "live" if before.ray_service != after.ray_service else "beside"


@pytest.mark.parametrize(("value", "changed"), CHANGES.items(), ids=CHANGES)
def test_a_changed_value_does_what_is_said_of_it(chart: Chart, value: str, changed: str) -> None:
    names = re.sub(r"\[\d+\].*", "", value).split(".")
    known = said()
    word = next(known[path] for n in range(len(names), 0, -1) if (path := ".".join(names[:n])) in known)
    assert effect_of(chart, value, changed) == word


def bounds(rendered: Rendered) -> dict[str, tuple[int, int, int]]:
    return {
        name: (group["replicas"], group["minReplicas"], group["maxReplicas"])
        for name, group in rendered.groups.items() if name != "head"
    }  # fmt: skip


@pytest.mark.parametrize("change", ["autoscaling.denoisers.max=900", "replicas.managers=40"])
def test_what_changes_live_under_the_autoscaler_needs_no_other_bounds_of_pods(chart: Chart, change: str) -> None:
    """KubeRay leaves those of a cluster that runs as they were."""
    before, after = (bounds(chart.render(*BASE, *SCALED, *more)) for more in ((), (change,)))
    for group, (_, fewest, most) in before.items():
        assert fewest <= after[group][0] <= most


def test_values_say_of_each_value_what_a_change_does() -> None:
    names = {"nameOverride", "fullnameOverride"}
    assert [
        path for path, word in said().items() if not word and "." in path and path.split(".")[0] not in names
    ] == []
