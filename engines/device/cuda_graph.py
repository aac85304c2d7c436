"""Functions of tensors recorded once and replayed: on CUDA as a graph, without the host launching each kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Replayable(Protocol):
    """Work that can be repeated, on the same memory."""

    def replay(self) -> None:
        """Do it again."""


class Capture(Protocol):
    """Records work: does it once, and returns what repeats it."""

    def __call__(self, run: Callable[[], None]) -> Replayable:
        """Call `run` at least once. What is returned uses the memory that it used."""


class CaptureFailed(RuntimeError):
    """An error in a capture, after which the process cannot go on."""


class CudaGraphCapture:
    """Captures CUDA graphs, all with one pool of memory: they are replayed one after the other.

    What a graph leaves there is overwritten by the next one, so results must be copied out.

    An error in the first run, which captures nothing, can be got over. One in a capture cannot: PyTorch may raise
    its own over it and keep the pool's memory. It becomes a CaptureFailed, which is no EngineError: whoever serves
    ends the process then, and starts another.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Run once, so that kernels are compiled and libraries have their workspaces; then capture."""
        present = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(present)
        with torch.cuda.stream(self._stream):
            run()
        present.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # The thread that draws noise allocates pinned memory meanwhile, which only this mode permits.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                run()
        except Exception as error:
            raise CaptureFailed(
                f"a graph could not be captured, and this process must end; --no-graphs does without: {error}"
            ) from error
        return graph


class CudaGraphed:
    """`run`, recorded by `capture` at its first call, or until then run as it is where it `may_record` not.

    Tensors that `run` is called with are copied to where the recording reads them. Whatever else it depends on
    must be in memory that stays in place.
    """

    def __init__(
        self, run: Callable[..., Tensor | None], capture: Capture, may_record: Callable[[], bool] = lambda: True
    ) -> None:
        self._run = run
        self._capture = capture
        self._may_record = may_record
        self._inputs: tuple[Tensor, ...] = ()
        self._output: Tensor | None = None
        self._recorded: Replayable | None = None

    def __call__(self, *tensors: Tensor) -> Tensor | None:
        """What `run` makes of `tensors`, until the next call.

        Raises:
            ValueError: they differ in number, shape, dtype or device from those of the first call.

        """
        if self._recorded is None and not self._may_record():
            return self._run(*tensors)
        self._take(tensors)
        if self._recorded is None:
            self._recorded = self._capture(self._step)
        self._recorded.replay()
        return self._output

    def _take(self, tensors: tuple[Tensor, ...]) -> None:
        if not self._inputs:
            self._inputs = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors)
        given, recorded = _kinds(tensors), _kinds(self._inputs)
        if given != recorded:
            raise ValueError(f"recorded with {recorded}, but called with {given}")
        for place, x in zip(self._inputs, tensors, strict=True):
            place.copy_(x)

    def _step(self) -> None:
        result = self._run(*self._inputs)
        if result is None:
            return
        if self._output is None:
            # In the first run, before anything is captured: outside of a graph's own memory.
            self._output = torch.empty_like(result, memory_format=torch.contiguous_format)
        self._output.copy_(result)


def _kinds(tensors: tuple[Tensor, ...]) -> list[tuple[list[int], torch.dtype, torch.device]]:
    return [(list(x.shape), x.dtype, x.device) for x in tensors]
