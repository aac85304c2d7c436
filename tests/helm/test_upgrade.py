"""What a changed value does to a server that runs: what values.yaml says of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Literal, get_args

import pytest
import yaml

from benchmarks.harness.chart import CHART, INSECURE, Chart, Rendered
from tests.helm.schemas import serve_config_of

Effect = Literal["live", "replaced", "new cluster", "beside", "later", "new server"]

BASE = (*INSECURE, "recordings.create=true")

CHANGES: dict[str, str] = {
    "nameOverride": "films",
    "fullnameOverride": "films",
    "image.tag": "next",
    "image.repository": "films/longtake",
    "image.pullPolicy": "Always",
    "image.pullSecrets[0]": "registry",
    "insecure": "false",
    "tokens.existingSecret": "others",
    "tokens.key": "callers",
    "tokens.operatorKey": "operator",
    "ray.authSecret": "other",
    "ray.faultTolerance.passwordSecret": "redis",
    "ray.faultTolerance.redisAddress": "redis:6379",
    "server.model": "longlive-1.3b",
    "server.codec": "tiny",
    "server.device": "cuda,pods.denoiser.gpus=1",
    "server.slots": "3",
    "server.stages": "separate,server.decoder_slots=8",
    "server.lease_s": "20",
    "proxy": "haproxy",
    "replicas.managers": "6",
    "replicas.denoisers": "4",
    "replicas.decoders": "2",
    "replicas.textEncoders": "2",
    "autoscaling.enabled": "true",
    "autoscaling.denoisers.min": "2",
    "autoscaling.denoisers.max": "8",
    "autoscaling.decoders.min": "2",
    "autoscaling.decoders.max": "6",
    "autoscaling.textEncoders.min": "2",
    "autoscaling.textEncoders.max": "3",
    "autoscaling.upscaleSeconds": "5",
    "autoscaling.downscaleSeconds": "600",
    "autoscaling.idlePodSeconds": "300",
    "gpuResource": "amd.com/gpu",
    "pods.denoiser.resources.requests.cpu": "2",
    "pods.denoiser.resources.requests.memory": "4Gi",
    "pods.denoiser.resources.limits.cpu": "3",
    "pods.denoiser.resources.limits.memory": "9Gi",
    "pods.denoiser.gpus": "2",
    "pods.denoiser.sharedMemory": "2Gi",
    "pods.denoiser.nodeSelector.zone": "a",
    "pods.denoiser.tolerations[0].key": "gpu",
    "pods.denoiser.affinity.nodeAffinity": "null",
    "pods.denoiser.topologySpreadConstraints[0].maxSkew": "1",
    "pods.denoiser.priorityClassName": "high",
    "pods.denoiser.labels.team": "films",
    "pods.denoiser.annotations.team": "films",
    "pods.denoiser.env[0].name": "A",
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
    "weights.storageClassName": "fast",
    "weights.accessModes[0]": "ReadOnlyMany",
    "weights.download.enabled": "true",
    "weights.download.model": "self-forcing-1.3b",
    "weights.download.revisions[0]": "films/longlive@1",
    "weights.download.tinyCodec": "true",
    "weights.download.quantize": "int8",
    "weights.download.gpus": "1",
    "weights.download.tokenSecret": "hub",
    "weights.download.resources.requests.cpu": "2",
    "weights.download.resources.requests.memory": "8Gi",
    "weights.download.resources.limits.cpu": "3",
    "weights.download.resources.limits.memory": "9Gi",
    "recordings.create": "false",
    "recordings.existingClaim": "films",
    "recordings.size": "1Gi",
    "recordings.storageClassName": "fast",
    "recordings.accessModes[0]": "ReadWriteOnce",
    "service.type": "LoadBalancer",
    "service.annotations.team": "films",
    "routes.enabled": "true,routes.parentRefs[0].name=gate",
    "routes.parentRefs[0].name": "other",
    "routes.grpcHostnames[0]": "films.example",
    "routes.pageHostnames[0]": "films.example",
    "networkPolicy.enabled": "false",
    "networkPolicy.from[0].podSelector.matchLabels.team": "films",
    "networkPolicy.operatorNamespace": "kuberay",
    "networkPolicy.monitoringNamespace": "prometheus",
    "podDisruptionBudget.enabled": "false",
    "monitoring.podMonitor.enabled": "true",
    "monitoring.podMonitor.interval": "30s",
    "monitoring.podMonitor.labels.team": "films",
    "monitoring.dashboard.enabled": "true",
    "monitoring.dashboard.labels.grafana_dashboard": "here",
}

SCALED = ("autoscaling.enabled=true",)
SEPARATE = ("server.stages=separate", "server.decoder_slots=8")
TOKENS = ("insecure=false", "tokens.existingSecret=tokens")
DOWNLOADED = ("weights.create=true", "weights.download.model=longlive-1.3b", "weights.download.enabled=true")
ROUTED = ("routes.enabled=true", "routes.parentRefs[0].name=gate")
SHOWN_WITH: Mapping[str, tuple[str, ...]] = {
    "autoscaling.denoisers.min": SCALED,
    "autoscaling.denoisers.max": SCALED,
    "autoscaling.decoders.min": (*SCALED, *SEPARATE),
    "autoscaling.decoders.max": (*SCALED, *SEPARATE),
    "autoscaling.textEncoders.min": (*SCALED, *SEPARATE, "autoscaling.textEncoders.max=2"),
    "autoscaling.textEncoders.max": (*SCALED, *SEPARATE),
    "autoscaling.upscaleSeconds": SCALED,
    "autoscaling.downscaleSeconds": SCALED,
    "autoscaling.idlePodSeconds": SCALED,
    "insecure": ("tokens.existingSecret=tokens", "tokens.operatorKey=operator"),
    "tokens.": TOKENS,
    "ray.faultTolerance.passwordSecret": ("ray.faultTolerance.redisAddress=redis:6379",),
    "server.model": ("weights.existingClaim=weights",),
    "server.codec": ("weights.existingClaim=weights",),
    "replicas.decoders": SEPARATE,
    "replicas.textEncoders": SEPARATE,
    "gpuResource": ("server.device=cuda", "pods.denoiser.gpus=1"),
    "pods.denoiser.gpus": ("server.device=cuda", "pods.denoiser.gpus=1"),
    "weights.size": ("weights.create=true",),
    "weights.storageClassName": ("weights.create=true",),
    "weights.accessModes": ("weights.create=true",),
    "weights.download.enabled": DOWNLOADED[:2],
    "weights.download.gpus": (*DOWNLOADED, "weights.download.quantize=int8"),
    "weights.download.": DOWNLOADED,
    "routes.p": ROUTED,
    "routes.g": ROUTED,
    "monitoring.podMonitor.interval": ("monitoring.podMonitor.enabled=true",),
    "monitoring.podMonitor.labels": ("monitoring.podMonitor.enabled=true",),
    "monitoring.dashboard.labels": ("monitoring.dashboard.enabled=true",),
}
"""What values need beside them to do anything, by how their paths begin."""


def said() -> dict[str, str]:
    """By a value's path, what values.yaml says that a change of it does. What is inside a value has its word."""
    words: dict[str, str] = {}
    path: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        if "<<: *pod" in line:
            inside = {name: word for name, word in words.items() if name.startswith("pods.head.")}
            words |= {name.replace("head", path[1]): word for name, word in inside.items()}
        if not (found := re.match(r"( *)([A-Za-z]+):(.*)", line)):
            continue
        indent, name, rest = found.groups()
        path = [*path[: len(indent) // 2], name]
        comment = re.search(rf"# ({'|'.join(get_args(Effect))})\b", rest)
        inherited = words.get(".".join(path[:-1]), "")
        words[".".join(path)] = comment[1] if comment else inherited
    return words


def word_of(path: str) -> str:
    """That of a value, or of what it is in."""
    names, known = path.split("."), said()
    return next(known[outer] for n in range(len(names), 0, -1) if (outer := ".".join(names[:n])) in known)


def cluster_hash(rendered: Rendered, groups: int) -> str:
    """What KubeRay 1.7 compares: a cluster's spec without what may change in place, with its first `groups`."""
    cluster: Any = deepcopy(rendered.ray_service["spec"]["rayClusterConfig"])
    cluster.pop("upgradeStrategy", None)
    del cluster["workerGroupSpecs"][groups:]
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
    beside = next((needed for path, needed in SHOWN_WITH.items() if value.startswith(path)), ())
    base = (*BASE, *beside)
    before, after = chart.render(*base), chart.render(*base, f"{value}={changed}")
    assert before.objects != after.objects, f"{value} changes nothing"
    if before.ray_service["metadata"]["name"] != after.ray_service["metadata"]["name"]:
        return "new server"
    # Groups that come behind those that are there are added to a cluster that runs.
    groups = len(before.groups) - len(["head"])
    if cluster_hash(before, groups) != cluster_hash(after, groups):
        return "new cluster"
    if code_version(before) != code_version(after):
        return "replaced"
    if before.ray_service == after.ray_service:
        return "beside"
    return "live" if in_place(before) != in_place(after) else "later"


def in_place(rendered: Rendered) -> Any:
    """What KubeRay changes of a server that runs: not its Service, nor what pods tolerate."""
    spec: Any = deepcopy(rendered.ray_service["spec"])
    spec.pop("serveService", None)
    for group in (spec["rayClusterConfig"]["headGroupSpec"], *spec["rayClusterConfig"]["workerGroupSpecs"]):
        group["template"]["spec"].pop("tolerations", None)
    return spec


@pytest.mark.parametrize(("value", "changed"), CHANGES.items(), ids=CHANGES)
def test_a_changed_value_does_what_is_said_of_it(chart: Chart, value: str, changed: str) -> None:
    assert effect_of(chart, value, changed) == word_of(re.sub(r"\[\d+\].*", "", value))


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


def leaves(values: Any, path: str = "") -> Iterator[str]:
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from leaves(value, f"{path}.{name}" if path else name)
    else:
        yield path


def test_each_value_is_changed_here_once() -> None:
    """All pods are made by the same template; the denoiser's stands for the others."""
    changed = [re.sub(r"\[.*", "", path) for path in CHANGES]
    others = tuple(f"pods.{kind}." for kind in ("head", "front", "decoder", "text"))
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    there = [path for path in leaves(values) if not path.startswith(others)]
    assert [path for path in there if not any(f"{one}.".startswith(f"{path}.") for one in changed)] == []


def test_values_say_of_each_value_what_a_change_does() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert [path for path in leaves(values) if not word_of(path)] == []
    assert [path for path, word in said().items() if not word and "." in path] == []
