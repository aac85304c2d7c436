"""The chart's life in a cluster: installed, upgraded, rolled back and uninstalled by helm itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.harness.chart import CHART, INSECURE, NAME
from tests.helm.cluster import Cluster, HelmFailed, cluster
from tests.helm.schemas import problem_of

SMALL = INSECURE
FULL = (
    *SMALL, "weights.create=true", "weights.download.enabled=true", "weights.download.model=longlive",
    "monitoring.podMonitor.enabled=true", "monitoring.dashboard.enabled=true", "routes.enabled=true",
    "routes.parentRefs[0].name=gate", "routes.grpcHostnames[0]=videos.example",
)  # fmt: skip
LARGE = (*FULL, "recordings.create=true", "replicas.denoisers=5", "replicas.managers=4", "image.tag=next")
CLOSED = (*SMALL, "podDisruptionBudget.enabled=false", "networkPolicy.enabled=false")

DOWNLOADS = (
    "weights.download.revisions[0]=owner/name@1", "weights.download.quantize=int8", "weights.existingClaim=other",
    "weights.download.resources.limits.cpu=9", "weights.download.tokenSecret=hub", "image.pullPolicy=Always",
)  # fmt: skip
"""Changes of what a Job does, and of how."""

MISSPELT = (*SMALL, "pods.denoiser.affinity.nodeAfinity.weight=1")

WRITTEN_BY_THE_SERVER = ("uid", "creationTimestamp", "resourceVersion", "namespace")


@pytest.fixture
def empty(programs: Path, tmp_path: Path) -> Iterator[Cluster]:
    with cluster(programs, tmp_path, problem_of) as made:
        yield made


def put(there: Cluster, how: str, values: tuple[str, ...]) -> None:
    there.helm(how, NAME, CHART, "--disable-openapi-validation", *settings(values))


def settings(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def rendered(there: Cluster, values: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What the chart makes of values, by `Kind/name`."""
    text = there.helm("template", NAME, CHART, *settings(values))
    found = [one for one in yaml.safe_load_all(text) if one]
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in found}


def present(there: Cluster) -> dict[str, dict[str, Any]]:
    """What is there but helm's own Secrets, as it was written."""
    found = {name: one for name, one in there.objects().items() if one.get("type") != "helm.sh/release.v1"}
    for metadata in (one["metadata"] for one in found.values()):
        for key in WRITTEN_BY_THE_SERVER:
            del metadata[key]
        notes = metadata.pop("annotations")
        if others := {key: value for key, value in notes.items() if not key.startswith("meta.helm.sh/")}:
            metadata["annotations"] = others
    return found


def claims_of(there: Cluster, values: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The claims that the chart makes of values: once there, they stay."""
    found = rendered(there, values)
    return {name: one for name, one in found.items() if one["kind"] == "PersistentVolumeClaim"}


def test_each_upgrade_leaves_what_its_values_say_and_the_claims_of_those_before(empty: Cluster) -> None:
    claims: dict[str, dict[str, Any]] = {}
    for how, values in (("install", FULL), ("upgrade", LARGE), ("upgrade", CLOSED), ("upgrade", SMALL)):
        put(empty, how, values)
        assert present(empty) == claims | rendered(empty, values)
        claims |= claims_of(empty, values)
    assert len(claims) == 2


def test_a_change_of_replicas_reaches_the_config_of_serve(empty: Cluster) -> None:
    put(empty, "install", SMALL)
    before = empty.objects()[f"RayService/{NAME}"]
    put(empty, "upgrade", (*SMALL, "replicas.denoisers=5"))
    after = empty.objects()[f"RayService/{NAME}"]
    (application,) = yaml.safe_load(after["spec"]["serveConfigV2"])["applications"]
    assert 5 in [deployment.get("num_replicas") for deployment in application["deployments"]]
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_a_rollback_brings_back_what_was_switched_off_and_removes_what_was_not_there_yet(empty: Cluster) -> None:
    put(empty, "install", SMALL)
    put(empty, "upgrade", CLOSED)
    put(empty, "upgrade", FULL)
    put(empty, "upgrade", CLOSED)
    assert not {"PodDisruptionBudget", "NetworkPolicy"} & {one["kind"] for one in present(empty).values()}
    empty.helm("rollback", NAME, "1")
    assert "Rollback to 1" in empty.helm("history", NAME)
    assert present(empty) == rendered(empty, SMALL) | claims_of(empty, FULL)


def test_an_uninstalled_server_leaves_its_claims_and_the_next_one_finds_them(empty: Cluster) -> None:
    put(empty, "install", LARGE)
    empty.helm("uninstall", NAME)
    left = empty.objects()
    assert set(left) == {f"PersistentVolumeClaim/{NAME}-{what}" for what in ("weights", "recordings")}
    assert {one["metadata"]["annotations"]["helm.sh/resource-policy"] for one in left.values()} == {"keep"}
    put(empty, "install", LARGE)
    again = empty.objects()
    assert all(again[name]["metadata"]["uid"] == one["metadata"]["uid"] for name, one in left.items())


def test_an_object_that_the_cluster_refuses_fails_the_install_with_the_reason(empty: Cluster) -> None:
    with pytest.raises(HelmFailed, match=f'RayService "{NAME}" is invalid: .*nodeAfinity'):
        put(empty, "install", MISSPELT)
    assert "failed" in empty.helm("list")


def test_a_server_goes_on_after_an_upgrade_that_the_cluster_refuses(empty: Cluster) -> None:
    put(empty, "install", SMALL)
    with pytest.raises(HelmFailed, match="nodeAfinity"):
        put(empty, "upgrade", MISSPELT)
    assert present(empty) == rendered(empty, SMALL)
    empty.helm("rollback", NAME)
    assert present(empty) == rendered(empty, SMALL)


def test_no_value_changes_a_job_which_a_cluster_lets_nobody_do(empty: Cluster) -> None:
    put(empty, "install", FULL)
    for change in DOWNLOADS:
        put(empty, "upgrade", (*FULL, change))
        assert present(empty) == rendered(empty, (*FULL, change)) | claims_of(empty, FULL), change
