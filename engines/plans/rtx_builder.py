"""TensorRT-RTX: builds on any machine, with or without a card, for several kinds of card at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines.errors import PlanError
from engines.export.graph import StageGraph
from engines.plans.builder import BuiltPlan, Library, PlanTarget, Watch
from engines.plans.network import build_plan

DATACENTER = {"sm_90": "Hopper", "sm_100": "Blackwell for data centres", "sm_103": "Blackwell for data centres"}
"""What TensorRT-RTX leaves to TensorRT."""


def may_know(capability: str) -> bool:
    """Whether TensorRT-RTX may be for such cards; what it knows for certain it says itself."""
    return capability not in DATACENTER


def no_rtx_for(capability: str) -> str:
    """The beginning of what is said of cards that TensorRT-RTX does not know."""
    family = f", {DATACENTER[capability]}" if not may_know(capability) else ""
    return f"there is no TensorRT-RTX for {capability}{family}"


class RTXBuilder:
    """Builds with `trt`, the module `tensorrt_rtx`; a card completes a plan's code when it first runs it."""

    def __init__(self, trt: Any, license: str) -> None:
        self._trt = trt
        self._library = Library("tensorrt-rtx", trt.__version__, license)

    @property
    def library(self) -> Library:
        """TensorRT-RTX."""
        return self._library

    def target(self, capabilities: Sequence[str]) -> PlanTarget:
        """Any of those that the library knows, together, in their own order."""
        target = PlanTarget(tuple(sorted(capabilities, key=lambda name: (len(name), name))))
        known = self._known()
        for capability in target.capabilities:
            if capability not in known:
                raise PlanError(
                    f"{no_rtx_for(capability)}: {self._library} knows {', '.join(known)}; on a machine with the "
                    "card itself use --library tensorrt"
                )
        return target

    def build(self, graph: StageGraph, target: PlanTarget, timing_cache: bytes, watch: Watch) -> BuiltPlan:
        """Nothing is timed."""

        def configure(config: Any) -> None:
            config.num_compute_capabilities = len(target.capabilities)
            for number, capability in enumerate(target.capabilities):
                config.set_compute_capability(self._known()[capability], number)

        return build_plan(self._trt, self._library, graph, configure, watch)

    def _known(self) -> dict[str, Any]:
        members = self._trt.ComputeCapability.__members__
        return {f"sm_{name[2:]}": value for name, value in members.items() if name[:2] == "SM"}
