"""What a model loses with its transformer in 8 bits, beside what it loses in bf16.

    python -m benchmarks.quantization
    python -m benchmarks.quantization --model longlive-1.3b --device cuda --streams 4 --blocks 12 --size 480x832
    python -m benchmarks.quantization --parts speed --threads 1 --runs 20

The model is watched as `longtake quantize` watches it; then the same streams, with prompts of their own and a
switch, are rolled out in fp32 and in each way to round. Five parts: all of the transformer, with PSNR of the
pictures; INT8 in one kind of layer alone; in one block of the transformer alone; steps, each begun where fp32 is;
and on a CPU the time of whole blocks. A run replaces the parts that it measures and keeps the others, if they are
of the same weights and streams.

What the judge sees of it, and ten minutes of drift:

    longtake quantize pocket --to int8
    python -m benchmarks.fidelity --model pocket-int8 --parts prompts drift --drift-minutes 10
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.fidelity import earlier_parts
from benchmarks.measure.machine import RESULTS, Machine
from benchmarks.measure.sizes import frame_size, resized
from benchmarks.quantization import speed
from benchmarks.quantization.loss import Laboratory
from benchmarks.quantization.plot import draw
from benchmarks.quantization.prompts import shown_prompts
from benchmarks.quantization.rollout import Take
from benchmarks.quantization.variants import by_block, by_kind, rounded, runnable, whole
from engines.errors import EngineError
from engines.loading.model import Model
from engines.quantization.calibration import calibrate
from kernels.dispatch import EAGER
from serving.cli.weights.quantize import BLOCKS, read_prompts
from serving.errors import ModelError, ServingError
from serving.media.whole_file import write_whole
from serving.weights.catalog import models_folder
from serving.weights.loader import open_model
from serving.weights.quantized_model import model_config

LOSSES = ("whole", "kinds", "layers", "steps")
PARTS = (*LOSSES, "speed")


@dataclass(frozen=True)
class Benchmark:
    """What is measured of one model, and with how many runs of a block the time."""

    laboratory: Laboratory
    runs: int

    def measure(self, part: str) -> dict[str, Any]:
        """One of `PARTS`. Raises KeyError for another."""
        config, lab = self.laboratory.model.config, self.laboratory
        device = lab.model.transformer.device
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        ways = partial(runnable, capability=capability)
        eager = [way for way in whole(config) if way.backends == EAGER]
        parts = {
            "whole": lambda: {"variants": lab.whole(ways(whole(config)))},
            "kinds": lambda: {"variants": lab.parts(ways(by_kind(config)))},
            "layers": lambda: {"variants": lab.parts(ways(by_block(config)))},
            "steps": lambda: {"variants": lab.steps(ways(eager))},
            "speed": self._speed,
        }
        return parts[part]()

    def _speed(self) -> dict[str, Any]:
        lab, exact = self.laboratory, self.laboratory.model
        int8 = next(variant for variant in whole(exact.config) if variant.name == "int8")
        transformer = rounded(exact.transformer, int8, lab.statistics)
        config = replace(exact.config, transformer=transformer.config)
        model = Model.of(config, transformer, exact.vae)
        return speed.measure(exact, model, lab.take.stream, lab.take.prompts, self.runs, lab.report)


def prepare(options: argparse.Namespace) -> Laboratory:
    """Open the model, watch it, and say what is rolled out. Raises what `open_model` raises, and ModelError."""
    models = models_folder(options.models_dir)
    config = resized(model_config(options.model, models), options.size)
    if config.transformer.quantization is not None:
        raise ModelError(f"{options.model} is quantized already; measure {config.name}, of which it is made")
    if config.needs_video:
        raise ModelError(f"{config.name} only restyles videos; streams from prompts alone are measured here")
    open_some = partial(open_model, options.model, models, torch.device(options.device))
    encode = open_some(torch.bfloat16, networks=["text_encoder"]).prompts.encode
    watched = [encode(text) for text in read_prompts(None, config)]
    shown = [encode(text) for text in shown_prompts(config.name, options.streams)]
    # The text encoder is four times as large as the transformer.
    del encode
    model = open_some(torch.float32, networks=["transformer", "codec"]).model
    print(f"watching {config.name}", flush=True)
    statistics = calibrate(model, watched, config.stream, BLOCKS)
    return Laboratory(model, statistics, Take(config.stream, shown, options.blocks), _say)


def _say(line: str) -> None:
    print(f"  {line}", flush=True)


def run(benchmark: Benchmark, parts: list[str], machine: Machine, stem: Path) -> dict[str, Any]:
    """Measure `parts`, writing JSON and plot at `stem` after each; returns the JSON's document."""
    model, take = benchmark.laboratory.model, benchmark.laboratory.take
    size = f"{take.stream.height}x{take.stream.width}"
    of = {
        "model": model.config.name,
        "weights": model.identity,
        "plan": {"streams": len(take.prompts), "blocks": take.blocks, "size": size},
    }
    file = stem.with_suffix(".json")
    document: dict[str, Any] = {**of, "parts": earlier_parts(file, of)}
    for part in parts:
        print(part, flush=True)
        started = time.monotonic()
        measured = benchmark.measure(part)
        seconds = round(time.monotonic() - started, 1)
        document["parts"][part] = {"machine": asdict(machine), "seconds": seconds} | measured
        write_whole(file, json.dumps(document, indent=1) + "\n")
        draw(document, stem.with_suffix(".png"))
    return document


def summary(document: Mapping[str, Any]) -> str:
    """What was measured, in lines."""
    lines, parts = [], document["parts"]
    for name, found in parts["whole"]["variants"].items() if "whole" in parts else ():
        lines.append(
            f"{name}: error {found['last_block_error']:.4f} at the last block, {found['median_error']:.4f} in "
            f"all; PSNR {found['median_psnr_db']:.1f} dB, worst block {found['worst_psnr_db']:.1f} dB"
        )
    for part in ("kinds", "layers"):
        if part in parts:
            errors = {name: found["last_block_error"] for name, found in parts[part]["variants"].items()}
            lines.append(f"{part}: " + ", ".join(f"{name} {error:.4f}" for name, error in errors.items()))
    for name, errors in parts["steps"]["variants"].items() if "steps" in parts else ():
        lines.append(f"steps, {name}: " + ", ".join(f"{step}: {error:.4f}" for step, error in errors.items()))
    if "speed" in parts:
        found = parts["speed"]
        ratios = [
            f"{found[f'{count}_together']['times_as_fast']:.2f} with {count}" for count in (1, speed.TOGETHER)
        ]
        load = f"load {found['load_before']} before, {found['load_after']} after"
        lines.append(f"INT8 is so many times as fast as fp32: {', '.join(ratios)} together; {load}")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line. By default a run takes about five minutes on two cores."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantization", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", default="pocket", help="see `longtake models`; one that is not quantized")
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="on CUDA all but speed by default")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=6, help="of each stream; the last two follow another prompt")
    parser.add_argument("--size", type=frame_size, metavar="HxW", help="pictures; the model's own by default")
    parser.add_argument("--runs", type=int, default=20, help="timed blocks")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.streams < 1 or options.blocks < 3 or options.runs < 1:
        parser.error("it takes at least one stream, three blocks and one run")
    if options.parts is None:
        options.parts = list(PARTS if options.device == "cpu" else LOSSES)
    elif "speed" in options.parts and options.device != "cpu":
        parser.error("speed is that of a CPU; python -m benchmarks.gpu has 8 bits beside bf16 on a GPU")
    return parser, options


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser, options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        laboratory = prepare(options)
    except (EngineError, ServingError) as error:
        parser.error(str(error))
    options.results.mkdir(parents=True, exist_ok=True)
    machine = Machine.here(torch.device(options.device))
    size = "" if options.size is None else f"_{options.size[0]}x{options.size[1]}"
    stem = options.results / f"quantization_{laboratory.model.config.name}{size}_{options.device}"
    document = run(Benchmark(laboratory, options.runs), options.parts, machine, stem)
    print(f"{summary(document)}\n{machine}\n{stem}.json, .png")


if __name__ == "__main__":
    main()
