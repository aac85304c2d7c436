"""What makes a TensorRT plan of a stage's graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from typing_extensions import override

from engines.config.validation import require
from engines.export.graph import StageGraph

CPU = "cpu"
"""What a plan is for that needs no card."""


@dataclass(frozen=True)
class Library:
    """What builds and runs plans: its name, its version, and the name of the license that comes with it."""

    name: str
    version: str
    license: str

    @override
    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class PlanTarget:
    """The cards that a plan is for. Raises ConfigError for what is no compute capability.

    Args:
        capabilities: such as ("sm_89", "sm_120"), none twice; or `CPU`.
        device: the name of the one kind of card that it was timed on; empty where any of `capabilities` will do.

    """

    capabilities: tuple[str, ...]
    device: str = ""

    def __post_init__(self) -> None:
        require(len(self.capabilities) > 0, "no card is named; give a compute capability, such as sm_89")
        for capability in self.capabilities:
            known = capability == CPU or re.fullmatch(r"sm_\d{2,3}", capability) is not None
            require(known, f"{capability!r} is no compute capability; one is called sm_89, for instance")
        once = len(set(self.capabilities)) == len(self.capabilities)
        require(once, f"{', '.join(self.capabilities)} names a compute capability twice")

    @override
    def __str__(self) -> str:
        return self.device or ", ".join(self.capabilities)


class BuildStep(NamedTuple):
    """How far a build is: `done` of the `steps` of what is done in `phase`."""

    phase: str
    done: int
    steps: int


Watch = Callable[[BuildStep], bool]
"""Is told of every step of a build; the build goes on while it returns True."""


class BuiltPlan(NamedTuple):
    """A plan as its builder leaves it.

    `layers` are those that the parser made of the graph. `activation_bytes` is what the plan will take of a card's
    memory for activations, by the builder's log; None where that does not say. `timing_cache` makes the next build
    on such a card faster; empty where nothing is timed.
    """

    data: memoryview
    layers: int
    activation_bytes: int | None
    seconds: float
    timing_cache: bytes = b""


class PlanBuilder(Protocol):
    """Builds plans with one library."""

    @property
    def library(self) -> Library:
        """What it builds with."""

    def target(self, capabilities: Sequence[str]) -> PlanTarget:
        """The cards with these compute capabilities.

        Raises PlanError, which says what to do, for any that it cannot build for; ConfigError for none at all.
        """

    def build(self, graph: StageGraph, target: PlanTarget, timing_cache: bytes, watch: Watch) -> BuiltPlan:
        """Build the plan of `graph`; `timing_cache` is what an earlier build on such a card left, or empty.

        Raises PlanError with what the library says if that cannot be, PlanStopped if `watch` wants no more of it.
        """
