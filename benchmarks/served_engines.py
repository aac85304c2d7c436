"""Frames a second of one session by the engines of a CPU: `python -m benchmarks.served_engines`.

`longtake serve` runs the decoder and the denoiser of an unpaced session by PyTorch or by plans of onnxruntime's,
on one thread each. The pocket model (96x160) has a decoder of its own; tiny-taehv (64x96) is a tiny transformer of
random weights before TAEHV.
"""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.overload import measure_and_keep
from benchmarks.serving import unpaced
from engines.config.geometry import FRAMES_PER_SECOND
from serving.cli.main import main as longtake
from serving.deployments.server_process import local_server

MODELS = ("pocket", "tiny-taehv")
PLANNED = ("decoder", "denoiser")
RUNS = 3

ENGINES = {
    "PyTorch": "",
    "decoder by onnxruntime": "--decoder-engine onnx",
    "denoiser by onnxruntime": "--denoiser-engine onnx",
    "both by onnxruntime": "--decoder-engine onnx --denoiser-engine onnx",
}
"""And the options of a server that runs them."""


def plan(model: str, models: Path) -> None:
    """Make all plans of a model. Raises RuntimeError where that fails."""
    for stage in PLANNED:
        command = f"plan {model} --stage {stage} --for cpu --library onnxruntime --models-dir"
        if code := longtake([*shlex.split(command), str(models)]):
            raise RuntimeError(f"longtake {command} ended with {code}")


def measure(seconds: float, folder: Path) -> dict[str, Any]:
    """Each model by each engine; a session lasts so many seconds of video."""
    frames = round(seconds * FRAMES_PER_SECOND)
    found: dict[str, dict[str, list[float]]] = {}
    for model in MODELS:
        plan(model, folder)
        found[model] = {}
        for name, engines in ENGINES.items():
            common = ("--model", model, "--models-dir", str(folder), "--recordings", str(folder / "films"))
            with local_server([*common, *shlex.split(engines), "--threads", "1"]) as server:
                film = folder / "film.mp4"
                rates = [asyncio.run(unpaced(server.address, film, frames)) for _ in range(RUNS)]
            found[model][name] = [round(rate, 1) for rate in rates]
            print(f"{model}, {name}: {median(rates):.1f} frames/s", flush=True)
    return {"frames_per_second": found}


def main() -> None:
    """Measure, print and keep."""
    measure_and_keep(measure, "served_engines_cpu", 30, __doc__)


if __name__ == "__main__":
    main()
