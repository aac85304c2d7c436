"""What runs a stage's graph: onnxruntime or TensorRT."""

from __future__ import annotations

from typing import Protocol

from engines.export.graph import StageGraph


class StageRuntime(Protocol):
    """One graph, loaded and ready to run, by one caller at a time.

    Inputs and outputs are memory of the caller, at an address each, laid out as the graph's `TensorSpec` says.
    """

    @property
    def graph(self) -> StageGraph:
        """What it runs."""

    def set_address(self, name: str, address: int) -> None:
        """Where an input or output lies from the next run on."""

    def run(self, stream: int) -> None:
        """Run once, on a CUDA device in `stream`, which it does not wait for; on a CPU it is 0 and of no matter.

        Raises RuntimeError, or what the runtime raises, if that fails; outputs hold anything then.
        """
