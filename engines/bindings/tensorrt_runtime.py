"""Plans run by TensorRT or TensorRT-RTX, whose modules have one interface.

Written for a card and not yet run on one: tests hold it against a stand-in for the module.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from engines.errors import PlanError
from engines.export.graph import StageGraph, TensorSpec

logger = logging.getLogger(__name__)

DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32",
    "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""Ours by the library's."""


class TensorRTRuntime:
    """`plan` of `graph` on `device`, by the module `trt`.

    The memory that a run needs besides its inputs and outputs comes from torch's allocator and goes back to it:
    the graphs of a process share it. `cache` is where TensorRT-RTX keeps what it has compiled for this card.

    Raises PlanError if the plan cannot be loaded here or is not one of `graph`.
    """

    def __init__(self, trt: Any, graph: StageGraph, plan: bytes, device: torch.device, cache: Path | None = None):
        self._graph = graph
        self._device = device
        # All that is made of the runtime needs it to the end.
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise PlanError(f"{trt.__name__} {trt.__version__} cannot load the plan of {graph.name} on this card")
        self._require_same_tensors()
        self._scratch_bytes: int = self._engine.device_memory_size_v2
        self._cache = cache
        self._compiled: Any = None
        self._context = self._new_context(trt)

    @property
    def graph(self) -> StageGraph:
        """What it runs."""
        return self._graph

    def set_address(self, name: str, address: int) -> None:
        """As `StageRuntime.set_address`."""
        if not self._context.set_tensor_address(name, address):
            raise RuntimeError(f"the plan of {self._graph.name} does not take {name} at {address:#x}")

    def run(self, stream: int) -> None:
        """As `StageRuntime.run`."""
        # Freed as this returns, it goes to what is later in the stream, when the run is over.
        scratch = torch.empty(self._scratch_bytes, dtype=torch.uint8, device=self._device)
        self._context.set_device_memory(scratch.data_ptr(), self._scratch_bytes)
        if not self._context.execute_async_v3(stream):
            raise RuntimeError(f"the plan of {self._graph.name} did not run; the log says why")
        if self._compiled is not None:
            self._keep_compiled()

    def _new_context(self, trt: Any) -> Any:
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._cache is None:
            return self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        self._compiled = config.create_runtime_cache()
        try:
            self._compiled.deserialize(self._cache.read_bytes())
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("compiled code is not read", extra={"file": str(self._cache), "why": str(error)})
        config.set_runtime_cache(self._compiled)
        return self._engine.create_execution_context(config)

    def _keep_compiled(self) -> None:
        """Once, after the first run: the next process need not compile it again."""
        assert self._cache is not None
        compiled, self._compiled = bytes(self._compiled.serialize()), None
        place = self._cache.with_name(f".{self._cache.name}.{os.getpid()}")
        try:
            self._remove_left_behind()
            place.write_bytes(compiled)
            place.replace(self._cache)
        except OSError as error:
            place.unlink(missing_ok=True)
            logger.warning("compiled code is not kept", extra={"file": str(self._cache), "why": str(error)})

    def _remove_left_behind(self) -> None:
        """Remove what processes left that were killed as they wrote it."""
        assert self._cache is not None
        for place in self._cache.parent.glob(f".{self._cache.name}.*"):
            if (pid := place.suffix[1:]).isdecimal() and not _is_there(int(pid)):
                place.unlink(missing_ok=True)

    def _require_same_tensors(self) -> None:
        found = {self._spec(self._engine.get_tensor_name(n)) for n in range(self._engine.num_io_tensors)}
        graph = self._graph
        wanted = {("INPUT", spec) for spec in graph.inputs} | {("OUTPUT", spec) for spec in graph.outputs}
        if differing := found ^ wanted:
            name = min(spec.name for _, spec in differing)
            raise PlanError(f"the plan is not one of {graph.name}: {name} differs, build it again")

    def _spec(self, name: str) -> tuple[str, TensorSpec]:
        engine = self._engine
        shape, dtype = tuple(engine.get_tensor_shape(name)), DTYPES[engine.get_tensor_dtype(name).name]
        return engine.get_tensor_mode(name).name, TensorSpec(name, dtype, shape)


def _is_there(pid: int) -> bool:
    """Whether a process has this number, somebody else's too."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
