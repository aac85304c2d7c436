"""One call of a stage by each engine that may run it: PyTorch, onnxruntime on a CPU, TensorRT on a card.

What an engine takes that is not there, a package or a plan for this card, is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.measure.machine import Machine
from benchmarks.measure.timing import sample
from engines.bindings.onnx_runtime import OnnxRuntime
from engines.bindings.stage_session import StageSession
from engines.bindings.tensorrt_runtime import TensorRTRuntime
from engines.errors import ConfigError, PlanError
from engines.export.graph import StageGraph
from engines.plans.libraries import LibraryName, plan_builder, plan_module
from engines.plans.rtx_builder import may_know, no_rtx_for
from engines.plans.tensorrt_builder import Card
from serving.media.whole_file import write_whole

LIBRARIES: tuple[LibraryName, ...] = ("tensorrt-rtx", "tensorrt")
"""Of cards."""

COLUMNS = """\
| stage | call | engine | ms | largest difference | peak MB |
|---|---|---|---:|---:|---:|"""

Call = Callable[[], Tensor]


class Engine(NamedTuple):
    """`make` loads what `name` stands for and returns the call; raises ConfigError or PlanError if it cannot."""

    name: str
    make: Callable[[], Call]


class Subject(NamedTuple):
    """What is called: the stage of a model, which call of it, and what it returns in fp32 by PyTorch."""

    stage: str
    call: str
    exact: Tensor


@dataclass(frozen=True)
class EngineRow:
    """A call by one engine: its median time, and how far what it returns is from PyTorch's in fp32.

    `peak_bytes` are what it takes of a card, all in all. `refused` says why there is no such engine here, `failed`
    what went wrong with one that there is.
    """

    stage: str
    call: str
    engine: str
    ms: float = 0.0
    difference: float = 0.0
    peak_bytes: int | None = None
    refused: str = ""
    failed: str = ""

    @override
    def __str__(self) -> str:
        head = f"| {self.stage} | {self.call} | {self.engine} |"
        if self.refused or self.failed:
            return f"{head} {self.refused or f'FAILED: {self.failed}'} |||"
        peak = "" if self.peak_bytes is None else f"{self.peak_bytes / 1e6:,.0f}"
        return f"{head} {self.ms:.2f} | {self.difference:.1e} | {peak} |"


def exactly() -> AbstractContextManager[None]:
    """Convolutions in fp32 are that, not TF32, on a card too; all are by the fastest way that cuDNN finds."""
    flags: Any = torch.backends.cudnn.flags
    context: AbstractContextManager[None] = flags(enabled=True, benchmark=True, allow_tf32=False)
    return context


def measure(subject: Subject, engines: Iterable[Engine], device: torch.device, runs: int) -> Iterator[EngineRow]:
    """Time every engine; each is gone before the next is made."""
    for engine in engines:
        try:
            yield _timed(subject, engine, device, runs)
        except (ConfigError, PlanError) as error:
            yield EngineRow(subject.stage, subject.call, engine.name, refused=_line(error))
        except RuntimeError as error:
            yield EngineRow(subject.stage, subject.call, engine.name, failed=_line(error))


class Stage(Protocol):
    """What several engines compute."""

    def subject(self, device: torch.device) -> Subject:
        """What is measured, on the CPU or on a card."""

    def on_cpu(self, folder: Path) -> Iterator[Engine]:
        """The engines of a CPU; graphs go into `folder`."""

    def on_card(self, device: torch.device, folder: Path) -> Iterator[Engine]:
        """Those of a card."""


def measure_stage(stage: Stage, device: torch.device, runs: int) -> Iterator[EngineRow]:
    """By all engines of the device."""
    with tempfile.TemporaryDirectory() as name, exactly():
        folder = Path(name)
        engines = stage.on_cpu(folder) if device.type == "cpu" else stage.on_card(device, folder)
        yield from measure(stage.subject(device), engines, device, runs)


def add_arguments(parser: argparse.ArgumentParser, timed: str, devices: Sequence[str] = ("cpu", "cuda")) -> None:
    """Where engines run, how many `timed` calls there are, and where rows are written."""
    parser.add_argument("--device", choices=devices, default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1, as in a server)")
    parser.add_argument("--runs", type=int, default=20, help=f"{timed} that are timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write them there too")


def chosen_device(parser: argparse.ArgumentParser, options: argparse.Namespace) -> torch.device:
    """The device that is asked for, with torch's threads as they are; ends the program where it is not here."""
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    torch.set_num_threads(options.threads)
    return torch.device(options.device)


@torch.inference_mode()
def _timed(subject: Subject, engine: Engine, device: torch.device, runs: int) -> EngineRow:
    memory = _Memory(device)
    call = engine.make()
    times, made = sample(lambda _: call(), runs, device)
    peak = memory.peak()
    difference = float((made.float() - subject.exact).abs().max())
    return EngineRow(subject.stage, subject.call, engine.name, round(times.median_ms, 3), difference, peak)


class _Memory:
    """What is taken of a card from now on: by torch at its peak, and by libraries beside it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            self._beside = self._beside_torch()

    def peak(self) -> int | None:
        """None where there is no card."""
        if self._device.type != "cuda":
            return None
        most = torch.cuda.max_memory_allocated(self._device) - self._before
        return most + self._beside_torch() - self._beside

    def _beside_torch(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free - torch.cuda.memory_reserved(self._device)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def report(rows: Iterable[EngineRow], device: torch.device, file: Path | None, **more: Any) -> int:
    """Print rows as they come, and write them and `more` to `file`; 1 if an engine that is here failed."""
    print(COLUMNS)
    seen = list[EngineRow]()
    for row in rows:
        seen.append(row)
        print(row, flush=True)
    if file is not None:
        document = {"machine": asdict(Machine.here(device)), "rows": [asdict(row) for row in seen], **more}
        write_whole(file, json.dumps(document, indent=1) + "\n")
    return 1 if any(row.failed for row in seen) else 0


def by_onnxruntime(graphs: Iterable[StageGraph]) -> list[StageSession]:
    """Ready to run on this process's threads. Raises as `OnnxRuntime`."""
    threads = torch.get_num_threads()
    return [StageSession(OnnxRuntime(graph, graph.path, threads), torch.device("cpu")) for graph in graphs]


def by_plans(
    graphs: Callable[[], Sequence[StageGraph]], library: LibraryName, device: torch.device
) -> list[StageSession]:
    """Plans that `library` builds for this machine's card, ready to run on `device`.

    Raises PlanError where it is not installed or builds none for the card, ConfigError as `graphs` does.
    """
    card = Card.here()
    if library == "tensorrt-rtx" and not may_know(card.capability):
        # Whether it is installed or not.
        raise PlanError(no_rtx_for(card.capability))
    builder, module = plan_builder(library), plan_module(library)
    target = builder.target([card.capability])
    sessions = []
    for graph in graphs():
        built = builder.build(graph, target, b"", lambda step: True)
        sessions.append(StageSession(TensorRTRuntime(module, graph, bytes(built.data), device), device))
    return sessions
