"""A stand-in for TensorRT's module, as far as running a plan goes.

A plan is the name of a graph's folder, and onnxruntime runs it. A context reads and writes the addresses that it
is given, so that a wrong one shows in the pictures.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Any

from engines.bindings.onnx_runtime import OnnxRuntime
from engines.bindings.tensorrt_runtime import DTYPES
from engines.export.graph import StageGraph
from engines.plans.builder import BuiltPlan, Library, PlanTarget, Watch

__version__ = "11.0"


class Builder:
    """Makes plans of `library` that `Runtime` loads: graphs are kept in `folder`."""

    def __init__(self, library: str, folder: Path) -> None:
        self.library = Library(library, __version__, "none")
        self._folder = folder

    def target(self, capabilities: Sequence[str]) -> PlanTarget:
        return PlanTarget(tuple(capabilities))

    def build(self, graph: StageGraph, target: PlanTarget, timing_cache: bytes, watch: Watch) -> BuiltPlan:
        kept = self._folder / self.library.name / graph.name
        shutil.copytree(graph.folder, kept)
        return BuiltPlan(memoryview(str(kept).encode()), 1, None, 0.0)


class ExecutionContextAllocationStrategy(Enum):
    STATIC = auto()
    USER_MANAGED = auto()


class TensorIOMode(Enum):
    INPUT = auto()
    OUTPUT = auto()


DataType = Enum("DataType", list(DTYPES))  # type: ignore[misc]


class Logger:
    WARNING = 2

    def __init__(self, severity: int) -> None:
        self.severity = severity


class Runtime:
    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        folder = Path(plan.decode())
        return Engine(StageGraph.load(folder)) if folder.is_dir() else None


class RuntimeCache:
    def __init__(self) -> None:
        self.compiled = b""

    def deserialize(self, compiled: bytes) -> None:
        self.compiled = compiled

    def serialize(self) -> bytes:
        return self.compiled or b"compiled here"


class RuntimeConfig:
    def __init__(self) -> None:
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> None:
        self.cache = cache


class Engine:
    device_memory_size_v2 = 4096

    def __init__(self, graph: StageGraph) -> None:
        self.graph = graph
        self.specs = (*graph.inputs, *graph.outputs)
        self.num_io_tensors = len(self.specs)

    def get_tensor_name(self, number: int) -> str:
        return self.specs[number].name

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._spec(name).shape

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[next(theirs for theirs, ours in DTYPES.items() if ours == self._spec(name).dtype)]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self._spec(name) in self.graph.inputs else TensorIOMode.OUTPUT

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, how: ExecutionContextAllocationStrategy | RuntimeConfig) -> Context:
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self.graph)

    def _spec(self, name: str) -> Any:
        return next(spec for spec in self.specs if spec.name == name)


class Context:
    def __init__(self, graph: StageGraph) -> None:
        self._runs = OnnxRuntime(graph, graph.path, threads=1)
        self._scratch = 0
        self.streams: list[int] = []
        self.fails = False

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == Engine.device_memory_size_v2
        self._scratch = address

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._runs.set_address(name, address)
        return address != 0

    def execute_async_v3(self, stream: int) -> bool:
        assert self._scratch
        self.streams.append(stream)
        self._runs.run(0)
        return not self.fails
