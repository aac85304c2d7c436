"""From a graph to a plan, by calls that TensorRT-RTX and TensorRT have in common."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from engines.errors import PlanError, PlanStopped
from engines.export.graph import StageGraph
from engines.plans.builder import BuildStep, BuiltPlan, Library, Watch

ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
"""In the log of a build."""


class BuildLog:
    """What a library says while it builds: errors, and the memory that the plan will take."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.activation_bytes: int | None = None

    def take(self, *, error: bool, message: str) -> None:
        """Keep what matters of a message."""
        if error:
            self.errors.append(message)
        elif match := ACTIVATIONS.search(message):
            self.activation_bytes = int(match[1])


def build_plan(
    trt: Any, library: Library, graph: StageGraph, configure: Callable[[Any], None], watch: Watch
) -> BuiltPlan:
    """Build the plan of `graph`, strongly typed: each tensor in the dtype that the graph gives it.

    Args:
        trt: the library's module.
        library: what it is called in errors.
        graph: what to build.
        configure: sets the options of the builder's config.
        watch: is told of every step.

    Raises:
        PlanError: the library cannot read or build the graph; with what it says.
        PlanStopped: `watch` wanted no more of it.
    """
    start, log = time.monotonic(), BuildLog()
    logger, monitor = _logger(trt, log), _monitor(trt, watch)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph.path)):
        problems = "; ".join(parser.get_error(number).desc() for number in range(parser.num_errors))
        raise PlanError(f"{library} cannot read {graph.path}: {problems}")
    _let_attention_decompose(trt, network)
    config = builder.create_builder_config()
    config.progress_monitor = monitor
    configure(config)
    layers, built = network.num_layers, builder.build_serialized_network(network, config)
    if monitor.failure is not None:
        raise monitor.failure
    if monitor.stopped:
        raise PlanStopped(f"the build of {graph.name} was stopped; nothing of it is left")
    if built is None:
        problems = "; ".join(log.errors) or "it does not say why"
        raise PlanError(f"{library} cannot build {graph.name}: {problems}")
    return BuiltPlan(memoryview(built), layers, log.activation_bytes, time.monotonic() - start)


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Allow several kernels for an attention that has none of its own, as for heads of few channels or in fp32."""
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _logger(trt: Any, log: BuildLog) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.take(error=int(severity) <= int(trt.ILogger.Severity.ERROR), message=message)

    return Logger()


def _monitor(trt: Any, watch: Watch) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called by the thread that builds, so that signals are handled between two steps."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False
            self.failure: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                self.stopped = self.stopped or not watch(BuildStep(phase, step + 1, self._steps[phase]))
            except BaseException as failure:  # Which the library, in between, would not hand on.
                self.failure, self.stopped = failure, True
            return not self.stopped

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Monitor()
