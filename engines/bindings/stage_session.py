"""A stage's graph run over tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engines.bindings.runtime import StageRuntime
from engines.errors import StreamError
from engines.export.graph import StageGraph, TensorSpec


class StageSession:
    """Runs `runtime` over tensors on `device`, in its current stream.

    Outputs are memory of their own: a call that fails changes nothing, and no input is an output. What a stream
    remembers is in one of two sets, the one that a call reads and the one it writes. The first is free when the
    stream has gone on, and torch's allocator gives it to the next call, of whichever stream: one set to spare is
    enough for all.
    """

    def __init__(self, runtime: StageRuntime, device: torch.device) -> None:
        self._runtime = runtime
        self._device = device

    @property
    def graph(self) -> StageGraph:
        """What it runs."""
        return self._runtime.graph

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name; on CUDA they are there when all that is in the current stream is done.

        Raises StreamError for an input that is not of the shape, dtype or device that the graph takes.
        """
        # Named until the run has begun: a copy without gaps belongs to nobody else.
        given = {spec.name: self._taken(spec, inputs[spec.name]) for spec in self.graph.inputs}
        made = {
            spec.name: torch.empty(spec.shape, dtype=spec.torch_dtype, device=self._device)
            for spec in self.graph.outputs
        }
        for name, tensor in (given | made).items():
            self._runtime.set_address(name, tensor.data_ptr())
        cuda = self._device.type == "cuda"
        self._runtime.run(torch.cuda.current_stream(self._device).cuda_stream if cuda else 0)
        return made

    def _taken(self, spec: TensorSpec, tensor: Tensor) -> Tensor:
        if (tuple(tensor.shape), tensor.dtype) != (spec.shape, spec.torch_dtype):
            raise StreamError(
                f"{self.graph.name} takes {spec.name} {spec}; it is given {list(tensor.shape)} {tensor.dtype}"
            )
        if tensor.is_cuda != (self._device.type == "cuda"):
            raise StreamError(f"{self.graph.name} runs on {self._device}; {spec.name} is on {tensor.device}")
        return tensor.contiguous()
