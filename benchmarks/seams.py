"""Tries what only a GPU can break: memory that runs out, cold threads, graphs and pools that go too early.

    python -m benchmarks.seams --model longlive-1.3b --device cuda

One generator is built as a server builds it, warmed up in a thread, and led through its life there. Each seam says
what was measured and, where it can be told here, whether it holds: a CPU has no graphs, no queues and no memory of
its own. What a seam cannot do is written down, and the others are tried all the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from logging import LogRecord
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.measure.machine import RESULTS
from benchmarks.measure.no_memory import no_memory
from benchmarks.measure.subject import Options, add_arguments, build, build_transformer, read_options
from benchmarks.measure.timing import timed
from engines.config.geometry import PATCH, SPATIAL_FACTOR
from engines.config.stream import StreamConfig
from engines.device.memory_budget import MemoryBudget
from engines.errors import DeviceOutOfMemory
from engines.loading.footprint import session_bytes
from engines.loading.model import Model, build_vae
from engines.runner import fused
from engines.runner.selection import kv_format_of
from engines.streaming.builder import EngineConfig, build_generator, memory_budget
from engines.streaming.stream import Stream
from engines.streaming.warmup import warm_up
from engines.text.prompt import Prompt
from engines.vae.protocol import use_fused_ops
from serving.media.whole_file import write_whole

STREAMS = 2
"""Open at once: one that something happens to, and its twin."""

MOST_SLOWER = 1.5
"""The first block in a warmed thread, beside a later one like it."""

T = TypeVar("T")


@dataclass(frozen=True)
class Seam:
    """What became of one; `holds` is None where that cannot be told."""

    name: str
    holds: bool | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    failed: str | None = None

    @override
    def __str__(self) -> str:
        if self.failed is not None:
            return f"{self.name}: failed: {self.failed}"
        found = {True: "holds", False: "DOES NOT HOLD", None: "measured"}[self.holds]
        return f"{self.name}: {found}; " + ", ".join(f"{name} {fact:,.6g}" for name, fact in self.facts.items())


class Found(NamedTuple):
    """What a seam's trial returns."""

    holds: bool | None
    facts: Mapping[str, float]


class SeamBenchmark:
    """A generator and its trials, in the order of its life. To be made and used in one thread."""

    def __init__(self, options: Options) -> None:
        self._options, self._device = options, options.device
        self._on_gpu = options.device.type == "cuda"
        self._model = Model.of(
            options.model, build_transformer(options), build(lambda: build_vae(options.model.vae), options)
        )
        use_fused_ops(self._model.vae, options.kernels)
        self._config = options.model.stream
        engine = EngineConfig(self._config, sessions=STREAMS, backends=options.kernels, graphs=options.graphs)
        self._budget = memory_budget(self._model, engine) if self._on_gpu else None
        lasting = None if self._budget is None else self._budget.lasting
        self._generator = build_generator(self._model, replace(engine, cache_bytes=lasting))
        self._prompt = Prompt("random", options.randn(options.prompt_tokens, options.model.transformer.text_dim))
        for _ in warm_up(self._generator, self._config):
            pass

    def trials(self) -> dict[str, Callable[[], Found]]:
        """All of them; after the last one there is no generator any more."""
        return {
            "first block in a warmed thread": self.threads,
            "memory beside what sessions keep": self.reserve,
            "host copy beside a block": self.host_copy,
            "out of memory": self.out_of_memory,
            "a size after the warm-up": self.unwarmed,
            "release with queued work": self.release,
        }

    def threads(self) -> Found:
        """Beside a later one in the same thread, and one in a thread that has done nothing before."""
        warmed_ms, again_ms = self._first_block_ms(), self._first_block_ms()
        with ThreadPoolExecutor(1, "cold") as cold:
            cold_ms = cold.submit(self._first_block_ms).result()
        holds = warmed_ms <= MOST_SLOWER * again_ms if self._on_gpu else None
        return Found(holds, {"warmed_ms": warmed_ms, "again_ms": again_ms, "cold_ms": cold_ms})

    def reserve(self) -> Found:
        """What all else has taken once windows are full, beside what was set aside for it."""
        with self._rolled(STREAMS):
            kept = STREAMS * sum(
                session_bytes(
                    self._model.config, self._config, self._options.dtype, kv_format_of(self._options.kernels)
                )
            )
            if self._budget is None:
                return Found(None, {"kept_bytes": kept})
            return beside_sessions(self._budget, torch.cuda.mem_get_info(self._device)[0], kept)

    def host_copy(self) -> Found:
        """A block's latents reach the host while the next block is made."""
        with self._rolled(1) as (stream,):
            (before,) = self._generator.generate([stream])
            begin = time.perf_counter()
            (block,) = self._generator.generate([stream])
            self._generator.copier.begin([before.latents], before.ready).result()
            copied_ms = (time.perf_counter() - begin) * 1e3
            beside = None if block.ready is None else not block.ready.query()
            _wait(block.ready)
            return Found(beside, {"copied_ms": copied_ms, "block_ms": (time.perf_counter() - begin) * 1e3})

    def out_of_memory(self) -> Found:
        """Passes and pictures are refused, leave nothing behind, and are made by the same call again."""
        with self._rolled(STREAMS) as (stream, twin):
            (wanted,) = self._generator.generate([twin])
            pictures = self._generator.decode(twin, wanted)
            passes = self._refused(lambda: self._generator.generate([stream])[0])
            decoding = self._refused(lambda: self._generator.decode(stream, passes.made))
            same = torch.equal(passes.made.latents, wanted.latents) and torch.equal(decoding.made, pictures)
        facts = {
            "passes_refused": passes.refused, "pictures_refused": decoding.refused, "same": same,
            "left_bytes": passes.left + decoding.left,
        }  # fmt: skip
        return Found(passes.refused and decoding.refused and same and facts["left_bytes"] == 0, facts)

    def unwarmed(self) -> Found:
        """A size that no graph was recorded for is made without, and that is said."""
        self._generator.end_warm_up()
        other = replace(self._config, width=self._config.width - SPATIAL_FACTOR * PATCH)
        with self._rolled(1) as (stream,):
            warm_ms = self._block_ms(stream)
        with _warnings() as told, self._rolled(1, other) as (stream,):
            other_ms = self._block_ms(stream)
        holds = len(told) > 0 if self._options.graphs else None
        return Found(holds, {"warnings": len(told), "block_ms": other_ms, "warm_block_ms": warm_ms})

    def release(self) -> Found:
        """Graphs and pools go when what is queued has used them: the block is that of an undisturbed twin."""
        with self._rolled(STREAMS) as (stream, twin):
            (wanted,) = self._generator.generate([twin])
            _wait(wanted.ready)
            (block,) = self._generator.generate([stream])
        before, begin = _allocated(self._device), time.perf_counter()
        self._generator.release()
        waited_ms = (time.perf_counter() - begin) * 1e3
        freed = before - _allocated(self._device)
        # Over what has been given back, where a pass that still ran would read.
        torch.full((freed // 4,), torch.nan, device=self._device)
        same = torch.equal(block.latents, wanted.latents)
        return Found(same, {"same": same, "waited_ms": waited_ms, "freed_bytes": freed})

    @contextmanager
    def _rolled(self, count: int, config: StreamConfig | None = None) -> Iterator[list[Stream]]:
        """Streams that are the same, with full windows, all decoded; closed at the end."""
        streams: list[Stream] = []
        try:
            for _ in range(count):
                streams.append(self._open(config or self._config))
                while streams[-1].latent_frames <= streams[-1].config.window_frames:
                    self._block(streams[-1])
            yield streams
        finally:
            for stream in streams:
                self._generator.close(stream)

    def _open(self, config: StreamConfig) -> Stream:
        stream = self._generator.open(config)
        self._generator.set_prompt(stream, self._prompt)
        return stream

    def _block(self, stream: Stream) -> Tensor:
        """Pictures of the next block."""
        (block,) = self._generator.generate([stream])
        return self._generator.decode(stream, block)

    def _block_ms(self, stream: Stream) -> float:
        return timed(partial(self._block, stream), self._device).ms

    def _first_block_ms(self) -> float:
        """Of a new stream."""
        stream = self._open(self._config)
        try:
            return self._block_ms(stream)
        finally:
            self._generator.close(stream)

    def _refused(self, call: Callable[[], T]) -> Refused[T]:
        """Make the call while there is no memory, and again if that is refused."""
        before = _allocated(self._device)
        try:
            with no_memory(self._device):
                return Refused(False, 0, call())
        except DeviceOutOfMemory:
            return Refused(True, _allocated(self._device) - before, call())


class Refused(NamedTuple, Generic[T]):
    """Whether a call was refused, the bytes that it left on the device then, and what it has made."""

    refused: bool
    left: int
    made: T


def beside_sessions(budget: MemoryBudget, free: int, kept: int) -> Found:
    """What is taken of the device beside what sessions keep, where `free` bytes of it are left."""
    beside = budget.free - free - kept
    facts = {"beside_bytes": beside, "working_bytes": budget.working, "reserve_bytes": budget.reserve}
    return Found(beside <= budget.working + budget.reserve, facts)


@contextmanager
def _warnings() -> Iterator[list[LogRecord]]:
    """What the runner says meanwhile."""
    handler = BufferingHandler(1 << 10)
    fused.logger.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        fused.logger.removeHandler(handler)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _wait(ready: torch.cuda.Event | None) -> None:
    if ready is not None:
        ready.synchronize()


def measure(options: Options) -> list[Seam]:
    """All seams; what fails says so."""
    with ThreadPoolExecutor(1, "warmed") as warmed:
        trials = warmed.submit(lambda: SeamBenchmark(options).trials()).result()
        return [warmed.submit(_tried, name, trial).result() for name, trial in trials.items()]


def _tried(name: str, trial: Callable[[], Found]) -> Seam:
    try:
        seam = Seam(name, *trial())
    except Exception as error:  # Whatever it is, the report says it, and the others are tried all the same.
        seam = Seam(name, failed=f"{type(error).__name__}: {error}"[:500])
    print(seam, flush=True)
    return seam


def main() -> int:
    """Try what the command line asks for; 1 if a seam does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seams")
    add_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", default=RESULTS / "seams.json")
    arguments = parser.parse_args()
    options = read_options(parser, arguments)
    seams = measure(options)
    facts = options.facts | {"seams": [asdict(seam) for seam in seams]}
    write_whole(arguments.json, json.dumps(facts, indent=1) + "\n")
    return 1 if any(seam.failed or seam.holds is False for seam in seams) else 0


if __name__ == "__main__":
    sys.exit(main())
