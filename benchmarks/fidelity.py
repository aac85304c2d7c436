"""What a model's pictures show of its prompts, as the judge reads them: numbers, a plot, and sheets to look at.

    python -m benchmarks.fidelity
    python -m benchmarks.fidelity --parts prompts --prompts 1000 --threads 2
    python -m benchmarks.fidelity --parts drift --streams 16 --drift-minutes 10 --device cuda
    python -m benchmarks.fidelity --model rendered
    python -m benchmarks.fidelity --model pocket-int8

Four parts: fresh prompts, two seeds of each prompt, switches with and without the KV recache, and drift over
minutes. A run replaces the parts that it measures and keeps the others, if they are of the same weights and the
same judge. The model `rendered` is the world itself, the best that can be reached; any other may be one that
`longtake quantize` made.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.judging import adherence, drift, prompt_switch, seeds
from benchmarks.judging.footage import ModelSource, RenderedSource, Source
from benchmarks.judging.judge import TrainedJudge
from benchmarks.judging.plot import Sheet, draw, drift_sheet, prompt_sheet, seed_sheet, switch_sheet
from benchmarks.measure.machine import RESULTS, Machine
from engines.config.stream import StreamConfig
from engines.errors import EngineError
from engines.loading.fingerprint import fingerprint
from engines.pocket.world.renderer import Renderer
from serving.errors import ServingError
from serving.media.whole_file import write_whole
from serving.weights.catalog import models_folder
from serving.weights.loader import open_model

PARTS = ("prompts", "seeds", "switches", "drift")

RENDERED = RenderedSource.name

STREAMS_TOGETHER = {"cpu": 1, "cuda": 32}
"""What a device takes at once by default: on a CPU small batches gain little, and alone a stream is bit-equal."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How much to measure, and how many streams to run at once. `blocks` are generated for each prompt.

    `pairs` is how many prompts are run with two seeds.
    """

    prompts: int
    blocks: int
    pairs: int
    switches: int
    streams: int
    minutes: float
    together: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be positive")


@dataclass(frozen=True)
class Measured:
    """One part: its numbers, and a sheet of pictures."""

    numbers: dict[str, object]
    sheet: Sheet


@dataclass(frozen=True)
class Fidelity:
    """Measures one source of clips."""

    source: Source
    judge: TrainedJudge
    world: Renderer
    plan: Plan
    report: Report

    def measure(self, part: str) -> Measured:
        """One of `PARTS`. Raises KeyError for another."""
        parts = {
            "prompts": self._prompts, "seeds": self._seeds, "switches": self._switches, "drift": self._drift,
        }  # fmt: skip
        return parts[part]()

    def _prompts(self) -> Measured:
        trials = adherence.measure(
            self.source, self.judge, self.world, prompts=self.plan.prompts, blocks=self.plan.blocks,
            together=self.plan.together, report=lambda done: self.report(f"prompt {done} of {self.plan.prompts}"),
        )  # fmt: skip
        return Measured(adherence.as_json(trials), prompt_sheet(trials))

    def _seeds(self) -> Measured:
        pairs = seeds.measure(
            self.source, self.world, prompts=self.plan.pairs, blocks=self.plan.blocks,
            report=lambda done: self.report(f"pair {done} of {self.plan.pairs}"),
        )  # fmt: skip
        return Measured(seeds.as_json(pairs), seed_sheet(pairs))

    def _switches(self) -> Measured:
        trials = prompt_switch.measure(
            self.source, self.judge, switches=self.plan.switches, together=self.plan.together,
            report=lambda done: self.report(f"switch {done} of {self.plan.switches}"),
        )  # fmt: skip
        return Measured(prompt_switch.as_json(trials), switch_sheet(trials))

    def _drift(self) -> Measured:
        def report(done: int, frame: int) -> None:
            self.report(f"stream {done + 1} of {self.plan.streams}, minute {frame / drift.MINUTE:.1f}")

        sightings = drift.measure(
            self.source, self.judge, self.world, streams=self.plan.streams, minutes=self.plan.minutes,
            together=self.plan.together, report=report,
        )  # fmt: skip
        return Measured(drift.as_json(sightings), drift_sheet(sightings))


def open_source(
    name: str, models: Path, device: torch.device, plan: Plan, world: Renderer
) -> tuple[Source, object]:
    """A source by the name of its model, and what tells its weights from others."""
    if name == RENDERED:
        return RenderedSource(world, StreamConfig()), None
    opened = open_model(name, models, device, torch.float32)
    # Every stream is forked at its switch.
    source = ModelSource(
        opened.model, opened.prompts, Path(name).name, streams=2 * plan.together, together=plan.together
    )
    return source, {**source.identity, "text_encoder": fingerprint(opened.model.text_encoder)}


def earlier_parts(file: Path, of: Mapping[str, object]) -> dict[str, Any]:
    """The parts that `file` holds, if it was measured `of` the same model and judge."""
    if not file.exists():
        return {}
    document = json.loads(file.read_text())
    same = all(document.get(name) == value for name, value in of.items())
    return dict(document["parts"]) if same else {}


def progress() -> Report:
    """Prints a line every ten seconds at most."""
    last = -math.inf

    def report(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= 10:
            last = time.monotonic()
            print(line, flush=True)

    return report


def run(fidelity: Fidelity, weights: object, parts: list[str], machine: Machine, stem: Path) -> dict[str, Any]:
    """Measure `parts`, writing JSON, plot and sheets at `stem` after each; returns the JSON's document."""
    of = {
        "model": fidelity.source.name,
        "weights": weights,
        "judge": {"weights": fingerprint(fidelity.judge.network), "accuracy": fidelity.judge.facts["accuracy"]},
    }
    file = stem.with_suffix(".json")
    document: dict[str, Any] = {**of, "parts": earlier_parts(file, of)}
    for part in parts:
        started = time.monotonic()
        measured = fidelity.measure(part)
        facts = {"machine": asdict(machine), "plan": asdict(fidelity.plan),
                 "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
        document["parts"][part] = facts | measured.numbers
        write_whole(file, json.dumps(document, indent=1) + "\n")
        measured.sheet.write(stem.with_name(f"{stem.name}_sheet_{part}.png"))
        draw(document, stem.with_suffix(".png"))
    return document


def summary(document: Mapping[str, Any]) -> str:
    """The numbers that the marks are about, in lines."""

    def told(share: Mapping[str, float]) -> str:
        return f"{share['share']:.1%} ({share['low']:.1%} to {share['high']:.1%})" if share["trials"] else "none"

    lines, parts = [], document["parts"]
    if "prompts" in parts:
        for group, shares in parts["prompts"]["adherence"].items():
            lines += [f"{group}: " + ", ".join(f"{name} {told(share)}" for name, share in shares.items())]
        for quantity in ("sharpness", "motion"):
            lines.append(f"{quantity} beside rendered: {parts['prompts'][f'{quantity}_by_rendered']['ratio']:.2f}")
        lines.append(f"smoothness beside rendered: {parts['prompts']['smoothness']}")
    if "seeds" in parts:
        found = parts["seeds"]
        lines.append(
            f"two seeds: subjects {found['apart']:.1%} of the width apart ({found['apart_rendered']:.1%})"
        )
    for name in ("recache", "no_recache") if "switches" in parts else ():
        for kind, found in parts["switches"][name].items():
            changed, kept = told(found["changed_right_within_3_blocks"]), told(found["unchanged_kept"])
            lines.append(f"switch, {name}, {kind}: changed {changed}, kept {kept}")
    if "drift" in parts:
        adherence_by_minute = [f"{minute['mean_adherence']:.1%}" for minute in parts["drift"]["minutes"]]
        lines.append(f"drift, mean adherence by minute: {', '.join(adherence_by_minute)}")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line. By default a run takes about ten minutes on two cores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help=f"see `longtake models`; or {RENDERED}")
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument(
        "--blocks", type=int, default=5, help="of each prompt's stream; its last frames are judged"
    )
    parser.add_argument("--pairs", type=int, default=30, help="prompts that two seeds are run of")
    parser.add_argument("--switches", type=int, default=45)
    parser.add_argument("--streams", type=int, default=2, help="of the measurement of drift")
    parser.add_argument("--drift-minutes", type=float, default=3)
    parser.add_argument("--together", type=int, help="streams that run at once; 1 on the CPU, 32 on CUDA")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    return parser, parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser, options = parse(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    plan = Plan(
        options.prompts, options.blocks, options.pairs, options.switches, options.streams, options.drift_minutes,
        options.together or STREAMS_TOGETHER[options.device],
    )  # fmt: skip
    world = Renderer(device=device)
    try:
        source, weights = open_source(options.model, models_folder(options.models_dir), device, plan, world)
    except (EngineError, ServingError) as error:
        parser.error(str(error))
    options.results.mkdir(parents=True, exist_ok=True)
    fidelity = Fidelity(source, TrainedJudge.load(device), world, plan, progress())
    machine, stem = Machine.here(device), options.results / f"fidelity_{source.name}_{options.device}"
    print(f"{summary(run(fidelity, weights, options.parts, machine, stem))}\n{machine}\n{stem}.json, .png")


if __name__ == "__main__":
    main()
