"""Graphs run by onnxruntime, on the CPU.

The package is in the extra `onnx`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engines.errors import ConfigError, PlanError
from engines.export.graph import StageGraph

ELEMENTS = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "bfloat16": 16}
"""ONNX's numbers of dtypes."""


def require_onnxruntime() -> None:
    """Raise ConfigError if it is not installed."""
    if find_spec("onnxruntime") is None:
        raise ConfigError("onnxruntime is not installed, which is to run graphs: pip install 'longtake[onnx]'")


class OnnxRuntime:
    """`graph`, whose ONNX file is at `path`, on `threads` threads of the CPU.

    Raises ConfigError if onnxruntime is not installed, PlanError if it cannot load the file.
    """

    def __init__(self, graph: StageGraph, path: Path, threads: int) -> None:
        require_onnxruntime()
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that wait asleep, as torch's do here, leave the cores to others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except (errors.Fail, errors.InvalidProtobuf, errors.InvalidGraph, errors.NotImplemented) as error:
            raise PlanError(f"onnxruntime cannot load {path}: {error}") from error
        self._session: Any = session
        self._binding: Any = session.io_binding()
        self._graph = graph
        self._inputs = {spec.name: spec for spec in graph.inputs}
        self._outputs = {spec.name: spec for spec in graph.outputs}

    @property
    def graph(self) -> StageGraph:
        """What it runs."""
        return self._graph

    def set_address(self, name: str, address: int) -> None:
        """As `StageRuntime.set_address`."""
        bind, specs = (
            (self._binding.bind_input, self._inputs)
            if name in self._inputs
            else (self._binding.bind_output, self._outputs)
        )
        spec = specs[name]
        bind(name, "cpu", 0, ELEMENTS[spec.dtype], spec.shape, address)

    def run(self, stream: int) -> None:
        """As `StageRuntime.run`; done when it returns."""
        self._session.run_with_iobinding(self._binding)
