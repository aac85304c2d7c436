"""Times what the host does for a pass: the block loop with passes that compute nothing.

    python -m benchmarks.host_time

runs on the CPU, on the tiny model: the network is replaced by one that returns its input, and recordings by ones
that do nothing when replayed. What is left is what a GPU's host does between two launches of a graph: placements,
rows of integers and their copy, noise, and copies to where a graph reads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.measure.machine import RESULTS, Machine
from benchmarks.measure.timing import Samples
from engines.cache.kv_cache import CacheLayout, KVCache, cache_size
from engines.config.presets import preset
from engines.device.cuda_graph import Capture, Replayable
from engines.runner.fused import FusedRunner
from engines.streaming.generator import Generator
from engines.streaming.stream import Stream
from engines.streaming.warmup import warm_up
from engines.text.prompt import Prompt
from engines.wan.layer_ops import EAGER_OPS, AttentionContext, LayerOps
from engines.wan.transformer import AdaLNModulation, CausalTransformer
from kernels.dispatch import KernelBackends
from serving.media.whole_file import write_whole

MARK_MS = 0.5
"""The most that a pass may take of the host."""

BACKENDS = KernelBackends(
    attention="triton", batched_attention="triton", prompt_attention="triton", qk_norm_rope="triton",
)  # fmt: skip
"""Rows are loaded for kernels that are never launched."""


class Idle(CausalTransformer):
    """Computes nothing."""

    @override
    def denoise(
        self, latents: Tensor, modulations: AdaLNModulation, context: AttentionContext, ops: LayerOps = EAGER_OPS
    ) -> Tensor:
        """The latents."""
        return latents

    @override
    def write_kv(
        self, latents: Tensor, modulations: AdaLNModulation, context: AttentionContext, ops: LayerOps = EAGER_OPS
    ) -> None:
        """Nothing."""


class IdleRunner(FusedRunner):
    """Does all that the host does for a kernel outside of the recordings, but for its launch."""

    def __init__(self, transformer: CausalTransformer, capture: Capture) -> None:
        super().__init__(transformer, BACKENDS, capture)
        self._ops = replace(self._ops, rotate_slots=lambda *_: None)


class Nothing:
    """A recording that does nothing."""

    def replay(self) -> None:
        """Do nothing."""


def record(run: Callable[[], None]) -> Replayable:
    """Run once, as a capture's warm-up does."""
    run()
    return Nothing()


@dataclass(frozen=True)
class HostTime:
    """Host milliseconds of each block and its clean pass, and the passes in them."""

    machine: Machine
    passes: int
    blocks: Samples

    @property
    def ms_per_pass(self) -> float:
        """Median."""
        return self.blocks.median_ms / self.passes

    @override
    def __str__(self) -> str:
        kept = "within" if self.ms_per_pass < MARK_MS else "above"
        return f"{self.machine}\n{self.ms_per_pass:.3f} ms of host time per pass, {kept} the mark of {MARK_MS} ms"

    def as_json(self) -> str:
        """With every sample."""
        facts = {"machine": asdict(self.machine), "passes": self.passes, "ms_per_pass": self.ms_per_pass}
        return json.dumps(facts | {"mark_ms": MARK_MS, "block_ms": self.blocks.ms}, indent=1) + "\n"


def idle_stream() -> tuple[Generator, Stream]:
    """A stream whose window has rolled, and its generator, which computes nothing."""
    model = preset("tiny")
    transformer = Idle(model.transformer)
    runner = IdleRunner(transformer, record)
    layout = CacheLayout.of(model.transformer, transformer.dtype)
    cache = KVCache(layout, cache_size(1, model.stream, model.transformer), torch.device("cpu"))
    generator = Generator(runner, None, cache)
    list(warm_up(generator, model.stream))
    stream = generator.open(model.stream)
    generator.set_prompt(stream, Prompt("idle", torch.ones(1, model.transformer.text_dim)))
    while stream.latent_frames <= stream.config.window_frames:
        make_block(generator, stream)
    return generator, stream


def make_block(generator: Generator, stream: Stream) -> None:
    """The next block with its clean pass."""
    generator.generate([stream])
    generator.write_context([stream])


def measure(blocks: int) -> HostTime:
    """Time `blocks` blocks."""
    generator, stream = idle_stream()
    times = []
    for _ in range(blocks):
        begin = time.perf_counter()
        make_block(generator, stream)
        times.append((time.perf_counter() - begin) * 1e3)
    return HostTime(Machine.here(torch.device("cpu")), len(stream.schedule) + 1, Samples(tuple(times)))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_time")
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="FILE", default=RESULTS / "host_time_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments.blocks)
    write_whole(arguments.json, result.as_json())
    print(f"{result}\n{arguments.json}")


if __name__ == "__main__":
    main()
