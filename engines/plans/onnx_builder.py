"""onnxruntime: its plan is the graph itself with its weights in one file, which any CPU runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from engines.errors import PlanError, PlanStopped
from engines.export import denoiser
from engines.export.exporter import OPSET, require_exporter
from engines.export.graph import StageGraph
from engines.plans.builder import CPU, BuildStep, BuiltPlan, Library, PlanTarget, Watch

ONNX_VERSION = f"opsets {OPSET} and {denoiser.OPSET}"

MOST_BYTES = (1 << 31) - 1
"""Of a file in ONNX's format."""


class OnnxBuilder:
    """Gathers a graph from its files. Plans depend on the version of the operators, not on that of onnxruntime."""

    def __init__(self, license: str) -> None:
        self._license = license

    @property
    def library(self) -> Library:
        """onnxruntime."""
        return Library("onnxruntime", ONNX_VERSION, self._license)

    def target(self, capabilities: Sequence[str]) -> PlanTarget:
        """The CPU alone."""
        target = PlanTarget(tuple(capabilities))
        if others := [name for name in target.capabilities if name != CPU]:
            raise PlanError(f"onnxruntime runs plans on the CPU, not on {others[0]}; say --for {CPU}")
        return target

    def build(self, graph: StageGraph, target: PlanTarget, timing_cache: bytes, watch: Watch) -> BuiltPlan:
        """Nothing is timed."""
        require_exporter()
        _require_one_file(graph)
        import onnx

        start = time.monotonic()
        model = onnx.load(graph.path)
        if not watch(BuildStep("Gathering weights", 1, 1)):
            raise PlanStopped(f"the build of {graph.name} was stopped; nothing of it is left")
        data = memoryview(model.SerializeToString())
        return BuiltPlan(data, len(model.graph.node), None, time.monotonic() - start)


def _require_one_file(graph: StageGraph) -> None:
    """Raise PlanError for a graph whose weights do not go into one file."""
    size = sum(file.stat().st_size for file in graph.folder.iterdir())
    if size > MOST_BYTES:
        raise PlanError(
            f"{graph.name} has {size:,} bytes, and onnxruntime's plans are files of {MOST_BYTES:,} at most; leave "
            f"the {graph.stage} to PyTorch"
        )
