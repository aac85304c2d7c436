"""Shows that a stream has no end: the time of a block, and the memory, after thousands of blocks.

    python -m benchmarks.endless --model tiny-taehv --blocks 2000

Every block is generated, decoded and settled; every hundredth begins with a prompt switch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt

from benchmarks.measure.machine import RESULTS, Machine
from benchmarks.measure.sizes import frame_size, resized
from benchmarks.measure.timing import timed
from engines.config.model import ModelConfig
from engines.config.presets import PRESETS, preset
from engines.loading.model import Model
from engines.streaming.builder import EngineConfig, build_generator
from engines.streaming.generator import Generator
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from serving.media.whole_file import whole_file, write_whole

SEED = 0
SWITCH_EVERY = 100
PROMPT_ROWS = (8, 40)
"""Fewest and most tokens of a prompt."""

EARLY = slice(100, 300)
LATE = slice(-200, None)
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Run:
    """What the blocks of one stream took, in their order: with memory as it was after each.

    `processor_ms` is what the process itself computed meanwhile: the time that another process takes is no part
    of it, and all that a GPU takes.
    """

    ms: Sequence[float]
    processor_ms: Sequence[float]
    memory_bytes: Sequence[int]
    switches: Sequence[int]


class Trend(NamedTuple):
    """A quantity early and late in a stream, and the slope of a straight line through it from `EARLY` on.

    The slope is the median of those between any two blocks (Theil and Sen): a block that another process held up
    does not bend the line.
    """

    early_median: float
    late_median: float
    slope_per_1000_blocks: float

    @classmethod
    def of(cls, values: Sequence[float], left_out: Sequence[int] = ()) -> Trend:
        """The trend of one value per block; the blocks `left_out` do not count for the line."""
        y = np.asarray(values, dtype=np.float64)
        blocks = np.setdiff1d(np.arange(EARLY.start, len(y)), left_out)
        first, second = np.triu_indices(len(blocks), k=1)
        slope = np.median((y[blocks[second]] - y[blocks[first]]) / (blocks[second] - blocks[first]))
        return cls(float(np.median(y[EARLY])), float(np.median(y[LATE])), float(slope) * 1000)

    def scaled(self, factor: float) -> Trend:
        """The same in another unit."""
        return Trend(*(value * factor for value in self))


def roll(model: ModelConfig, blocks: int, device: torch.device) -> Run:
    """Make `blocks` blocks of one stream: generate, decode, write context."""
    networks = Model.random(model, SEED, device)
    generator = build_generator(networks, EngineConfig(model.stream))
    stream = generator.open(model.stream)
    prompts = np.random.default_rng(SEED)
    ms, processor_ms, memory_bytes, used = [], [], [], memory_gauge(device)
    for block in range(blocks):
        if block % SWITCH_EVERY == 0:
            generator.set_prompt(stream, _random_prompt(prompts, model))
        started_s = time.process_time()
        ms.append(timed(lambda: _step(generator, stream), device).ms)
        processor_ms.append((time.process_time() - started_s) * 1e3)
        memory_bytes.append(used())
    return Run(ms, processor_ms, memory_bytes, range(0, blocks, SWITCH_EVERY))


def _step(generator: Generator, stream: Stream) -> None:
    (block,) = generator.generate([stream])
    generator.decode(stream, block)
    generator.write_context([stream])


def _random_prompt(random: np.random.Generator, model: ModelConfig) -> Prompt:
    tokens = int(random.integers(*PROMPT_ROWS))
    rows = random.standard_normal((tokens, model.transformer.text_dim), dtype=np.float32)
    return Prompt(f"{tokens} random tokens", torch.from_numpy(rows))


def memory_gauge(device: torch.device) -> Callable[[], int]:
    """Reads the bytes in use now: allocated ones on CUDA, else the process's resident set, as Linux tells it."""
    if device.type == "cuda":
        return lambda: torch.cuda.memory_allocated(device)
    return lambda: int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def plot(run: Run, title: str, file: Path) -> None:
    """Draw milliseconds and megabytes over the blocks."""
    mpl.use("Agg")
    figure, (clock, memory) = plt.subplots(2, 1, sharex=True, figsize=(9, 6), layout="constrained")
    blocks = np.arange(len(run.ms))
    clock.plot(blocks, run.ms, ".", markersize=2, color="tab:blue", label="block")
    clock.plot(
        run.switches, np.asarray(run.ms)[run.switches], "x", color="tab:orange", label="block of a prompt switch"
    )
    clock.plot(blocks, _running_median(run.ms), color="black", linewidth=1, label="median of 101 blocks")
    clock.plot(blocks, _running_median(run.processor_ms), color="tab:red", label="the same, processor time")
    clock.set(ylabel="milliseconds per block", ylim=(0, 3 * float(np.median(run.ms))), title=title)
    clock.legend(loc="upper right")
    memory.plot(blocks, np.asarray(run.memory_bytes) / 1e6, color="tab:green")
    memory.set(xlabel="block", ylabel="memory in use, MB", ylim=(0, 1.2 * max(run.memory_bytes) / 1e6))
    with whole_file(file) as place:
        figure.savefig(place, dpi=100)
    plt.close(figure)


def _running_median(values: Sequence[float], reach: int = 50) -> list[float]:
    return [float(np.median(values[max(0, i - reach) : i + reach + 1])) for i in range(len(values))]


def as_json(run: Run, model: ModelConfig, machine: Machine) -> str:
    """Trends, and the median of every ten blocks."""
    tens = range(0, len(run.ms), 10)
    result = {
        "machine": asdict(machine),
        "model": asdict(model),
        "blocks": len(run.ms),
        "switch_every": SWITCH_EVERY,
        "ms": Trend.of(run.ms, run.switches)._asdict(),
        "processor_ms": Trend.of(run.processor_ms, run.switches)._asdict(),
        "memory_bytes": Trend.of(run.memory_bytes)._asdict(),
        "ms_median_of_10": [_median_of_10(run.ms, i) for i in tens],
        "processor_ms_median_of_10": [_median_of_10(run.processor_ms, i) for i in tens],
        "memory_bytes_every_10": [run.memory_bytes[i] for i in tens],
    }
    return json.dumps(result, indent=1) + "\n"


def _median_of_10(values: Sequence[float], start: int) -> float:
    return round(float(np.median(values[start : start + 10])), 2)


def summary(run: Run) -> str:
    """The trends in words."""
    block, processor = (Trend.of(ms, run.switches) for ms in (run.ms, run.processor_ms))
    memory = Trend.of(run.memory_bytes).scaled(1e-6)
    return "\n".join(
        f"{name}: {trend.early_median:.2f} {unit} in blocks {EARLY.start}-{EARLY.stop}, "
        f"{trend.late_median:.2f} {unit} in the last {-LATE.start}; "
        f"slope {trend.slope_per_1000_blocks:+.3f} {unit} per 1000 blocks"
        for name, unit, trend in (
            ("median block", "ms", block), ("of it on the processor", "ms", processor), ("memory", "MB", memory)
        )
    )  # fmt: skip


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endless")
    parser.add_argument("--model", choices=sorted(PRESETS), default="tiny-taehv")
    parser.add_argument("--blocks", type=int, default=2000)
    parser.add_argument("--size", type=frame_size, metavar="HxW", default=(32, 48))
    parser.add_argument("--rope", choices=("relative", "absolute"), default="relative")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    arguments = parser.parse_args()
    if arguments.blocks < EARLY.stop - LATE.start:
        parser.error(f"--blocks is {arguments.blocks}; early and late blocks need {EARLY.stop - LATE.start}")
    torch.set_num_threads(arguments.threads)
    model = resized(preset(arguments.model), arguments.size)
    model = replace(model, stream=replace(model.stream, rope=arguments.rope))
    run = roll(model, arguments.blocks, torch.device(arguments.device))
    machine, file = (
        Machine.here(torch.device(arguments.device)),
        RESULTS / f"endless_{model.name}_{arguments.device}",
    )
    write_whole(file.with_suffix(".json"), as_json(run, model, machine))
    plot(
        run,
        f"{model.name}, {model.stream.height}x{model.stream.width}, {arguments.device}",
        file.with_suffix(".png"),
    )
    print(f"{machine}\n{summary(run)}\n{file}.json, .png")


if __name__ == "__main__":
    main()
