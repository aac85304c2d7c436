"""The dashboard asks for metrics that are there, in the way that their kind needs."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from ray.util import metrics

from benchmarks.harness.chart import CHART
from serving.deployments.telemetry.metrics import DenoiserMetrics, ManagerMetrics

DASHBOARD = CHART / "dashboards" / "longtake.json"

RAYS_GAUGES = {
    "ray_serve_deployment_replica_healthy", "ray_serve_replica_processing_queries",
    "ray_serve_deployment_queued_queries", "ray_node_mem_used", "ray_node_mem_total",
    "ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available",
}  # fmt: skip
RAYS_COUNTERS = {"ray_serve_deployment_replica_starts_total"}
RAYS_LABELS = {"deployment", "replica"}

USE = re.compile(r"(?P<over>rate\(|increase\()?(?P<name>ray_\w+)\{(?P<labels>[^}]*)\}(?P<range>\[[^\]]+\])?")
FIRST = re.compile(r"\((?P<of>ray_\w+\{[^}]*\}) unless (?P=of) offset 5m\) or (?=increase\((?P=of)\[5m\]\))")
"""What a series began with, which is no increase to Prometheus: a replica's first refusal would never be seen."""


class Use(NamedTuple):
    """A metric in a query."""

    name: str
    over_time: bool
    labels: str


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def queries() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def uses(query: str) -> Iterator[Use]:
    for found in USE.finditer(FIRST.sub("", query)):
        assert bool(found["over"]) == bool(found["range"]), query
        yield Use(found["name"], bool(found["over"]), found["labels"])


def ours() -> Iterator[tuple[str, bool, set[str]]]:
    """Names of what replicas export, as Ray writes them, whether they only grow, and their labels."""
    for metric in (*vars(DenoiserMetrics()).values(), *vars(ManagerMetrics()).values()):
        name, labels = f"ray_{metric.info['name']}", set(metric.info["tag_keys"])
        if isinstance(metric, metrics.Histogram):
            yield from ((f"{name}_{what}", True, labels | {"le"}) for what in ("bucket", "sum", "count"))
        else:
            grows = isinstance(metric, metrics.Counter)
            yield (f"{name}_total" if grows else name), grows, labels


def counters() -> set[str]:
    return {name for name, grows, _ in ours() if grows} | RAYS_COUNTERS


@pytest.mark.parametrize("query", queries())
def test_every_metric_is_exported(query: str) -> None:
    exported = {name for name, *_ in ours()} | RAYS_GAUGES | RAYS_COUNTERS
    assert set(re.findall(r"\bray_\w+", query)) <= exported
    assert len(list(uses(query))) == FIRST.sub("", query).count("ray_")


@pytest.mark.parametrize("query", queries())
def test_counters_and_only_they_are_taken_over_time(query: str) -> None:
    assert all(use.over_time == (use.name in counters()) for use in uses(query))
    assert sum(use.over_time for use in uses(query)) == query.count("rate(") + query.count("increase(")


@pytest.mark.parametrize("query", [query for query in queries() if "increase(" in query])
def test_a_count_of_lately_has_what_its_series_began_with(query: str) -> None:
    assert FIRST.search(query)


@pytest.mark.parametrize("query", queries())
def test_a_query_is_about_one_release_and_groups_by_labels_that_there_are(query: str) -> None:
    labels = RAYS_LABELS.union(*(labels for name, _, labels in ours() if name in query))
    assert {label for by in re.findall(r"by \((.*?)\)", query) for label in by.split(", ")} <= labels
    assert all(
        'namespace="$namespace", app_kubernetes_io_instance="$release"' in use.labels for use in uses(query)
    )


def test_every_metric_of_ours_is_shown() -> None:
    shown = " ".join(queries())
    missing = {name for name, *_ in ours() if re.sub("_(bucket|sum|count)$", "_", name) not in shown}
    assert not missing


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    for panel in dashboard()["panels"]:
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_nothing_is_there_twice_or_over_something_else() -> None:
    panels = dashboard()["panels"]
    ids, titles = (Counter(panel[key] for panel in panels) for key in ("id", "title"))
    assert {*ids.values(), *titles.values()} == {1}
    squares = Counter(
        (x, y) for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])
    )  # fmt: skip
    assert set(squares.values()) == {1}
    assert max(x for x, _ in squares) < 24
    assert all(len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) for panel in panels)


def test_grafana_gives_the_id_and_the_reader_the_source_the_namespace_and_the_release() -> None:
    board = dashboard()
    assert "id" not in board
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "namespace", "release"]
    asked = [*board["panels"], *(target for panel in board["panels"] for target in panel["targets"])]
    assert all(part["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for part in asked)


def test_the_chart_carries_it_and_labels_the_metrics_as_it_asks(programs: Path) -> None:
    enabled = ("--set", "insecure=true,monitoring.dashboard.enabled=true,monitoring.podMonitor.enabled=true")
    text = subprocess.check_output([programs / "helm", "template", "longtake", CHART, *enabled])
    (carried,) = (one for one in yaml.safe_load_all(text) if one["kind"] == "ConfigMap")
    (monitor,) = (one for one in yaml.safe_load_all(text) if one["kind"] == "PodMonitor")
    assert json.loads(carried["data"]["longtake.json"]) == dashboard()
    assert carried["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert "app.kubernetes.io/instance" in monitor["spec"]["podTargetLabels"]
