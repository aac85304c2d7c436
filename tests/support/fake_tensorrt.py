"""The part of TensorRT's interface that builds plans, as documented: it needs a card, which is not here."""

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import onnx

__version__ = "11.4.0"

STEPS = 3
UNKNOWN = ("Tanh",)
"""What the parser does not know."""

UNBUILDABLE = ("Sigmoid",)
"""What the builder has no kernel for."""


class ILogger:
    """Told what the library does."""

    class Severity(IntEnum):
        """The lower, the worse."""

        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3

    def log(self, severity: Severity, message: str) -> None:
        """To be overridden."""
        raise NotImplementedError


class IProgressMonitor:
    """Told how far a build is; to be overridden."""


class NetworkDefinitionCreationFlag(IntEnum):
    """As bit numbers."""

    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class LayerType(IntEnum):
    """Those that matter here."""

    CONVOLUTION = 0
    ATTENTION_INPUT = 48


class ILayer:
    """A layer; what is special to its type is there once it has the class of it."""

    def __init__(self, operator: str) -> None:
        self.operator = operator
        self.type = LayerType.ATTENTION_INPUT if operator == "Attention" else LayerType.CONVOLUTION
        self.parts = SimpleNamespace(decomposable=False)


class IAttentionInputLayer(ILayer):
    """Where an attention begins."""

    @property
    def attention(self) -> SimpleNamespace:
        """The attention as a whole."""
        return self.parts


class INetworkDefinition:
    """Layers."""

    def __init__(self) -> None:
        self.layers: list[ILayer] = []

    @property
    def num_layers(self) -> int:
        """How many."""
        return len(self.layers)

    def get_layer(self, number: int) -> ILayer:
        """The layer of this number."""
        return self.layers[number]


class OnnxParser:
    """Fills a network."""

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[str] = []

    @property
    def num_errors(self) -> int:
        """How many operators it does not know."""
        return len(self._errors)

    def get_error(self, number: int) -> Any:
        """One of them."""
        return SimpleNamespace(desc=lambda: self._errors[number])

    def parse_from_file(self, path: str) -> bool:
        """Whether it knows all operators in it."""
        operators = [node.op_type for node in onnx.load(path).graph.node]
        self._errors = [f"no importer for {name}" for name in operators if name in UNKNOWN]
        self._network.layers = [ILayer(name) for name in operators]
        return not self._errors


class TimingCache:
    """What was timed."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> memoryview:
        """As bytes."""
        return memoryview(self.data)


class BuilderConfig:
    """Options of a build."""

    def __init__(self) -> None:
        self.progress_monitor: Any = None
        self.timings = TimingCache(b"")

    def create_timing_cache(self, data: bytes) -> TimingCache:
        """From what an earlier one serialized to."""
        return TimingCache(data)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        """To be read and filled by the build."""
        assert not ignore_mismatch
        self.timings = cache
        return True


class Builder:
    """Builds networks to plans."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> INetworkDefinition:
        """An empty one."""
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition()

    def create_builder_config(self) -> BuilderConfig:
        """The defaults."""
        return BuilderConfig()

    def build_serialized_network(self, network: INetworkDefinition, config: BuilderConfig) -> bytes | None:
        """None if that failed, or if the monitor has it stopped."""
        if not self._run("Building engine", config.progress_monitor):
            return None
        if wrong := [layer.operator for layer in network.layers if layer.operator in UNBUILDABLE]:
            self._logger.log(ILogger.Severity.ERROR, f"could not find any implementation for node {wrong[0]}")
            return None
        attentions = [layer for layer in network.layers if layer.type is LayerType.ATTENTION_INPUT]
        assert all(layer.parts.decomposable for layer in attentions)
        self._logger.log(ILogger.Severity.INFO, "Total Activation Memory: 4096 bytes")
        config.timings.data += b"timed "
        return b"plan of " + " ".join(layer.operator for layer in network.layers).encode()

    @staticmethod
    def _run(phase: str, monitor: Any) -> bool:
        monitor.phase_start(phase, None, STEPS)
        going = all(monitor.step_complete(phase, step) for step in range(STEPS))
        monitor.phase_finish(phase)
        return going
