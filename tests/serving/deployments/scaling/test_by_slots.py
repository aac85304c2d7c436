"""The policy as Serve has it: by its name, pickled, with what replicas have sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from serving.deployments.scaling.replica_stats import ReplicaStats

DENOISER = DeploymentID("Denoiser", "longtake")
NAME = "serving.deployments.scaling.by_slots:by_slots"


def context(
    *sent: Mapping[str, float] | None, state: dict[str, Any] | None = None, target: int | None = None,
    now: float = 0.0, most: int = 8,
) -> AutoscalingContext:  # fmt: skip
    ids = [ReplicaID(f"replica{number}", DENOISER) for number in range(len(sent))]
    series: dict[str, dict[ReplicaID, list[TimeStampedValue]]] = {}
    for replica, stats in zip(ids, sent, strict=True):
        for name, value in (stats or {}).items():
            older, newer = TimeStampedValue(now - 1, 99.0), TimeStampedValue(now, value)
            series.setdefault(name, {})[replica] = [older, newer]
    return AutoscalingContext(
        deployment_id=DENOISER, deployment_name="Denoiser", app_name="longtake", current_num_replicas=len(ids),
        target_num_replicas=len(ids) if target is None else target, running_replicas=ids, total_num_requests=0.0,
        total_queued_requests=0.0, aggregated_metrics=None, raw_metrics=series, capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=most, policy_state=state or {}, last_scale_up_time=None,
        last_scale_down_time=None, current_time=now, config=None,
    )  # fmt: skip


def stats(used: float, admitted: float = 0.0) -> dict[str, float]:
    return ReplicaStats(5.0).report(used=used, slots=2, admitted=admitted)


@pytest.fixture(scope="module")
def policy() -> Any:
    named = AutoscalingPolicy(policy_function=NAME)  # type: ignore[no-untyped-call]
    pickled = named.get_serialized_policy_def()
    assert pickled
    config = AutoscalingConfig(policy={"policy_function": NAME}, max_replicas=8)
    assert config.policy == named
    return AutoscalingPolicy.from_serialized_policy_def({"policy_function": NAME}, pickled).get_policy()


def test_a_full_replica_calls_for_another_one(policy: Any) -> None:
    assert policy(context(stats(used=2)))[0] == 2
    assert policy(context(stats(used=1)))[0] == 1


def test_there_are_no_more_than_the_cluster_may_have(policy: Any) -> None:
    assert policy(context(*[stats(used=2)] * 5, most=3))[0] == 3


def test_who_has_not_reported_is_not_counted_and_without_reports_nothing_changes(policy: Any) -> None:
    assert policy(context(stats(used=2), None))[0] == 2
    assert policy(context(None, None, None, target=4))[0] == 4
    assert policy(context())[0] == 1


def test_what_it_remembers_of_arrivals_goes_through_the_state_that_serve_keeps(policy: Any) -> None:
    _, state = policy(context(stats(0, admitted=0)))
    rush = context(stats(0, admitted=60), state=state | {"of Serve": 1}, now=1.0)
    assert policy(rush)[0] > 3
    assert policy(context(stats(0, admitted=60), now=1.0))[0] == 1
