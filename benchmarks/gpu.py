"""Runs all that only a GPU can tell, one program after the other, what matters most first.

    python -m benchmarks.gpu --folder out/gpu --seconds 570

Each part is a process of its own and has at most its own time and what is left: one that fails or hangs costs the
others no more than that. The folder gets what the parts write, `gpu.json` with how each of them ended, and
`gpu.log` with all that they said. It needs no package but those that the engine imports; parts whose tools are not
installed are skipped, and say so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from typing_extensions import override

from benchmarks.measure.machine import COMMIT, RESULTS, ROOT, Machine
from serving.media.whole_file import write_whole

MODEL = "longlive-1.3b"
TAIL_LINES = 40
"""Of what a part said, printed when it ends."""

TESTS = (
    "-m",
    "pytest",
    "-q",
    "--maxfail=20",
    "--tb=short",
    "-p",
    "no:cacheprovider",
    "-o",
    "filterwarnings=default",
)
"""With this project's warnings as they come: the list in pyproject.toml names packages that need not be there."""

SIDE_BY_SIDE = ("-n", "8") if importlib.util.find_spec("xdist") else ()
"""Most of their time goes into compiling."""

NEEDS_NO_GPU = tuple(f"--ignore=tests/kernels/{name}.py" for name in ("test_ahead_of_time", "test_rows_compiled"))


@dataclass(frozen=True)
class Part:
    """A program, as arguments of this Python, and the most seconds it may take.

    `writes` is a file in the folder, whose path is the last argument. `without_graphs`: if it fails, it is run
    again with its kernels launched one by one. `tool` is a program in front of it, and `package` what it imports,
    without which it is skipped.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    writes: str | None = None
    without_graphs: bool = False
    tool: tuple[str, ...] = ()
    package: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> str | None:
        """The tool or package that is not installed."""
        if self.tool and shutil.which(self.tool[0]) is None:
            return self.tool[0]
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return self.package
        return None

    @property
    def ungraphed(self) -> Part:
        """The same with kernels launched one by one."""
        module, options = self.arguments[:2], self.arguments[2:]
        writes = None if self.writes is None else f"{Path(self.writes).stem}_no-graphs.json"
        return replace(
            self, name=f"{self.name} without graphs", arguments=(*module, "--no-graphs", *options), writes=writes,
            without_graphs=False,
        )  # fmt: skip

    def command(self, folder: Path) -> list[str]:
        """What to start; results go to `folder`."""
        return [*self.tool, sys.executable, *self.arguments, *([str(folder / self.writes)] if self.writes else [])]


NOT_KEPT = str(Path(tempfile.gettempdir(), "engine_320x576.json"))
SEAMS_NOT_KEPT = str(Path(tempfile.gettempdir(), "seams.json"))
VIDEO_NOT_KEPT = str(Path(tempfile.gettempdir(), "video.json"))
AT_FULL_SIZE = ("--sizes", "480x832", "--device", "cuda")
UMT5 = ("--encoder", "UMT5", "--layers", "4", "--lengths", "128", "512")
ENGINE = ("-m", "benchmarks.engine", "--model", MODEL, "--device", "cuda")

PARTS = (
    Part("parity", ("-m", "benchmarks.parity", "--json"), 240, f"parity_{MODEL}_480x832_cuda.json", True),
    Part("engine 480x832", (*ENGINE, "--json"), 240, f"engine_{MODEL}_480x832_cuda.json", without_graphs=True),
    Part("kernels", ("-m", "benchmarks.kernels", "--json"), 200, "kernels_480x832_cuda.json"),
    # Its report is in the log: one more file would not be carried back.
    Part("seams", ("-m", "benchmarks.seams", "--model", MODEL, "--device", "cuda", "--json", SEAMS_NOT_KEPT), 120),
    Part(
        "engine 480x832 in INT8",
        (*ENGINE, "--weights", "int8", "--no-text", "--json"),
        150,
        f"engine_{MODEL}-int8_480x832_cuda.json",
        without_graphs=True,
    ),
    Part(
        "video streams",
        (
            "-m",
            "benchmarks.video",
            "--model",
            "streamdiffusionv2-1.3b",
            "--device",
            "cuda",
            "--sizes",
            "480x832",
            "512x512",
            "--json",
            VIDEO_NOT_KEPT,
        ),
        240,
    ),
    Part("engine 320x576", (*ENGINE, "--size", "320x576", "--no-text", "--json", NOT_KEPT), 150),
    Part(
        "sharing",
        ("-m", "benchmarks.sharing", "--model", MODEL, "--device", "cuda", "--json"),
        150,
        f"sharing_{MODEL}_480x832_cuda.json",
    ),
    Part(
        "trace",
        ("-m", "benchmarks.trace", "--model", MODEL, "--device", "cuda", "--json"),
        90,
        f"trace_{MODEL}_480x832.json.gz",
    ),
    # By plans too, where ONNX and TensorRT are installed; what is not is a line among PyTorch's rows.
    Part("decoders", ("-m", "benchmarks.decoders", "--codecs", "TAEHV", "Wan VAE", *AT_FULL_SIZE), 200),
    Part("text encoder", ("-m", "benchmarks.text_encoder", *UMT5, "--device", "cuda"), 120),
    Part("torch.compile", ("-m", "benchmarks.compiled", "--model", MODEL, "--device", "cuda"), 240),
    Part("kernels' tests", (*TESTS, *SIDE_BY_SIDE, *NEEDS_NO_GPU, "tests/kernels"), 150, package="pytest"),
    Part(
        "sanitizer",
        (*TESTS, "tests/kernels/attention/test_qk_norm_rope.py", "tests/kernels/attention/test_window.py"),
        150,
        tool=("compute-sanitizer", "--error-exitcode", "9", "--report-api-errors", "no"),
        package="pytest",
        # Otherwise PyTorch hands out parts of one large reservation, whose bounds nobody watches.
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    ),
)
"""In the order of their worth."""


@dataclass(frozen=True)
class Outcome:
    """How a part ended: `code` is its exit status, if it was run to its end."""

    part: str
    end: Literal["done", "failed", "out of time", "skipped"]
    seconds: float = 0.0
    code: int | None = None
    missing: str | None = None

    @override
    def __str__(self) -> str:
        why = f": {self.missing} is not installed" if self.missing else ""
        status = f", status {self.code}" if self.code else ""
        return f"{self.part}: {self.end}{why}{status} ({self.seconds:.0f} s)"


def run(parts: Sequence[Part], folder: Path, seconds: float) -> list[Outcome]:
    """Run the parts within `seconds` all together; `gpu.json` is up to date whenever one has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.log").write_bytes(b"")
    end, outcomes = time.monotonic() + seconds, list[Outcome]()
    left = list(parts)
    while left:
        part = left.pop(0)
        outcomes.append(_run(part, folder, min(part.seconds, end - time.monotonic())))
        print(f"{outcomes[-1]}\n", flush=True)
        _write(outcomes, folder / "gpu.json")
        if outcomes[-1].end == "failed" and part.without_graphs:
            left.insert(0, part.ungraphed)
    return outcomes


def _run(part: Part, folder: Path, seconds: float) -> Outcome:
    if part.missing is not None:
        return Outcome(part.name, "skipped", missing=part.missing)
    if seconds <= 0:
        return Outcome(part.name, "out of time")
    begin, log = time.monotonic(), folder / "gpu.log"
    said = log.stat().st_size
    code = _status(part, folder, seconds)
    print(_tail(log, said), flush=True)
    took = time.monotonic() - begin
    if code is None:
        return Outcome(part.name, "out of time", took)
    return Outcome(part.name, "failed" if code else "done", took, code)


def _status(part: Part, folder: Path, seconds: float) -> int | None:
    """The exit status; None if the time did not suffice."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONUNBUFFERED": "1", **part.environment}
    with (folder / "gpu.log").open("ab") as log:
        log.write(f"\n== {part.name}\n".encode())
        log.flush()
        try:
            return subprocess.run(
                part.command(folder),
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                timeout=seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return None


def _tail(log: Path, said: int) -> str:
    """The last lines behind the first `said` bytes."""
    return "\n".join(log.read_bytes()[said:].decode(errors="replace").splitlines()[-TAIL_LINES:])


def _write(outcomes: Sequence[Outcome], file: Path) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {"machine": asdict(Machine.here(device)), "parts": [asdict(outcome) for outcome in outcomes]}
    write_whole(file, json.dumps(facts, indent=1) + "\n")


def main() -> int:
    """Run what the command line asks for; 1 unless every part that was not skipped is done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument(
        "--folder", type=Path, default=RESULTS, help="for all files; benchmarks/results by default"
    )
    parser.add_argument("--seconds", type=float, default=570, help="for everything; what comes last is left out")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="parts; all by default")
    parser.add_argument("--commit", help="of the code, where it is no checkout")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    if arguments.commit:
        os.environ[COMMIT] = arguments.commit
    parts = [part for part in PARTS if arguments.only is None or part.name in arguments.only]
    outcomes = run(parts, arguments.folder.resolve(), arguments.seconds)
    print("\n".join(map(str, outcomes)))
    return 0 if all(outcome.end in ("done", "skipped") for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
