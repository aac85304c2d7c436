"""Both runtimes by one name each, and a decoder on either."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engines.bindings.decoder import GraphDecoder
from engines.bindings.onnx_runtime import OnnxRuntime
from engines.bindings.runtime import StageRuntime
from engines.bindings.stage_session import StageSession
from engines.bindings.tensorrt_runtime import TensorRTRuntime
from engines.export.graph import StageGraph
from engines.vae.conv_cache import ConvCache
from engines.vae.protocol import StreamingDecoder
from tests.support import fake_tensorrt_runtime
from tests.support.exported import HEIGHT, WIDTH, Exported

CPU = torch.device("cpu")

LATENTS = torch.randn(1, 9, 3, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(1))


def on_tensorrt(graph: StageGraph) -> StageRuntime:
    return TensorRTRuntime(fake_tensorrt_runtime, graph, str(graph.folder).encode(), CPU)


RUNTIMES: dict[str, Callable[[StageGraph], StageRuntime]] = {
    "onnxruntime": lambda graph: OnnxRuntime(graph, graph.path, threads=1),
    "tensorrt": on_tensorrt,
}


class Watched:
    """A runtime whose addresses are noted, and which fails, with outputs half written, when it is told to."""

    def __init__(self, runtime: StageRuntime) -> None:
        self._runtime = runtime
        self.graph = runtime.graph
        self.addresses: dict[str, int] = {}
        self.runs = 0
        self.fails = False

    def set_address(self, name: str, address: int) -> None:
        self.addresses[name] = address
        self._runtime.set_address(name, address)

    def run(self, stream: int) -> None:
        self._runtime.run(stream)
        self.runs += 1
        if self.fails:
            raise RuntimeError("the card has fallen off the bus")


class Decoding:
    """A decoder on one of `RUNTIMES`, with a watch on each of its graphs."""

    def __init__(self, exported: Exported, runtime: str) -> None:
        self.watched = {name: Watched(RUNTIMES[runtime](graph)) for name, graph in exported.graphs.items()}
        sessions = [StageSession(watched, CPU) for watched in self.watched.values()]
        codec = exported.codec
        self.decoder = GraphDecoder(sessions, codec)


def after_first(decoder: StreamingDecoder, latents: Tensor = LATENTS[:, :3]) -> ConvCache:
    return decoder.decode(latents, decoder.start_decoding()).cache
