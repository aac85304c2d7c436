"""From a plan to what runs it."""

from __future__ import annotations

import torch

from engines.bindings.onnx_runtime import OnnxRuntime
from engines.bindings.runtime import StageRuntime
from engines.bindings.tensorrt_runtime import TensorRTRuntime
from engines.errors import PlanError
from engines.plans.libraries import plan_module
from engines.plans.store import Plan
from engines.plans.tensorrt_builder import Card


def load_plan(plan: Plan, device: torch.device) -> StageRuntime:
    """The plan, ready to run on `device`; on a CPU by as many threads as torch has.

    Raises PlanError if its library is not installed, or cannot load it here.
    """
    graph = plan.graph
    match plan.manifest.key.library:
        case "onnxruntime":
            return OnnxRuntime(graph, plan.path, torch.get_num_threads())
        case "tensorrt-rtx":
            # What it completes on a card is kept; TensorRT's plans are complete.
            trt, cache = plan_module("tensorrt-rtx"), plan.runtime_cache(Card.here().capability)
            return TensorRTRuntime(trt, graph, plan.path.read_bytes(), device, cache)
        case "tensorrt":
            return TensorRTRuntime(plan_module("tensorrt"), graph, plan.path.read_bytes(), device)
        case other:
            raise PlanError(f"the plan in {plan.folder} is one of {other}, which Longtake does not run")
