"""TensorRT: builds on the card that will run the plan, on which it times what it may choose from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from engines.errors import PlanError
from engines.export.graph import StageGraph
from engines.plans.builder import BuiltPlan, Library, PlanTarget, Watch
from engines.plans.network import build_plan
from engines.plans.rtx_builder import may_know


class Card(NamedTuple):
    """A graphics card: its compute capability, such as sm_89, and its name."""

    capability: str
    name: str

    @classmethod
    def here(cls) -> Card:
        """That of this machine. Raises PlanError if there is none."""
        if not torch.cuda.is_available():
            raise PlanError(
                "TensorRT builds on the card that will run the plan, and this machine has none that PyTorch can "
                "use; build there, or with --library tensorrt-rtx, which needs no card"
            )
        major, minor = torch.cuda.get_device_capability()
        return cls(f"sm_{major}{minor}", torch.cuda.get_device_name())


class TensorRTBuilder:
    """Builds with `trt`, the module `tensorrt`, for `card` alone."""

    def __init__(self, trt: Any, license: str, card: Card) -> None:
        self._trt = trt
        self._library = Library("tensorrt", trt.__version__, license)
        self._card = card

    @property
    def library(self) -> Library:
        """TensorRT."""
        return self._library

    def target(self, capabilities: Sequence[str]) -> PlanTarget:
        """This card's."""
        target = PlanTarget(tuple(capabilities), self._card.name)
        if others := [name for name in target.capabilities if name != self._card.capability]:
            elsewhere = ", or with --library tensorrt-rtx" if may_know(others[0]) else ""
            raise PlanError(
                f"TensorRT builds on the card that will run the plan, and {self._card.name} is "
                f"{self._card.capability}, not {others[0]}; build there{elsewhere}"
            )
        return target

    def build(self, graph: StageGraph, target: PlanTarget, timing_cache: bytes, watch: Watch) -> BuiltPlan:
        """Takes minutes, and fewer with a timing cache."""
        timings: list[Any] = []

        def configure(config: Any) -> None:
            timings.append(config.create_timing_cache(timing_cache))
            # One of another card or version would mislead: the library leaves it out, and times anew.
            config.set_timing_cache(timings[0], ignore_mismatch=False)

        built = build_plan(self._trt, self._library, graph, configure, watch)
        return built._replace(timing_cache=bytes(timings[0].serialize()))
