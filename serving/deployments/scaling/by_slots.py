"""The policy by which Serve's controller scales a deployment: `policy_function` of its `autoscaling_config`.

Serve pickles this module by value, and runs it on the head; what it imports has to be there.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ray.serve.config import AutoscalingContext

from serving.deployments.scaling.policy import ReplicaReport, Stage, remembered, replicas_wanted

REPORTED = [field.name for field in fields(ReplicaReport)]
HISTORY = "history"
"""Where the policy's own memory is, in the state that Serve keeps for it."""


def by_slots(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """How many replicas there are to be, and what to remember until the next time."""
    stage = Stage(
        context.current_time or 0.0, _reports(context), context.current_num_replicas, context.target_num_replicas
    )
    history = remembered(context.policy_state.get(HISTORY), stage)
    fewest, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return replicas_wanted(history, fewest, most), {HISTORY: history}


def _reports(context: AutoscalingContext) -> dict[str, ReplicaReport]:
    """The last one of each replica that has sent any."""
    series = context.raw_metrics or {}
    known = set.intersection(*(set(series.get(name, ())) for name in REPORTED))
    return {
        replica.unique_id: ReplicaReport(**{name: series[name][replica][-1].value for name in REPORTED})
        for replica in known
        if all(series[name][replica] for name in REPORTED)
    }
