"""Everything for a GPU in one go, as far as it runs without one."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import PARTS, Part, run
from benchmarks.measure.machine import ROOT

SLEEP = "import time; print('going to sleep', flush=True); time.sleep(60)"
BARE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
for module in {modules}:
    __import__(module)
"""
ABSENT = (
    "av", "ftfy", "google", "grpc", "onnx", "onnxruntime", "onnxscript", "PIL", "psutil", "ray", "regex",
    "safetensors", "scipy", "tensorrt", "tensorrt_rtx", "tokenizers", "yaml",
)  # fmt: skip
"""What the project uses, and a machine that was lent for its GPU need not have."""

BENCHMARKS = [part for part in PARTS if part.arguments[1].startswith("benchmarks.")]

WRITE = "import os, sys; open(sys.argv[1], 'w').write(os.environ['TRITON_INTERPRET'])"


def _part(code: str, seconds: float = 60, writes: str | None = None) -> Part:
    return Part(code, ("-c", code), seconds, writes)


def test_a_part_that_fails_or_hangs_leaves_the_others_be(tmp_path: Path) -> None:
    parts = [_part("raise SystemExit(3)"), _part(SLEEP, seconds=6), _part(WRITE, writes="kernels.json")]
    outcomes = run(parts, tmp_path, 120)
    assert [(outcome.end, outcome.code) for outcome in outcomes] == [
        ("failed", 3), ("out of time", None), ("done", 0),
    ]  # fmt: skip
    assert (tmp_path / "kernels.json").read_text() == "0"
    assert "going to sleep" in (tmp_path / "gpu.log").read_text()


def test_a_part_that_fails_on_graphs_is_run_again_without(tmp_path: Path) -> None:
    (tmp_path / "unsteady.py").write_text(
        "import sys; sys.exit(0 if '--no-graphs' in sys.argv and 'out_no-graphs.json' in sys.argv[-1] else 7)"
    )
    environment = {"PYTHONPATH": str(tmp_path)}
    part = Part("engine", ("-m", "unsteady", "--json"), 60, "out.json", True, environment=environment)
    outcomes = run([part, _part("pass")], tmp_path, 120)
    assert [(outcome.part, outcome.end) for outcome in outcomes] == [
        ("engine", "failed"), ("engine without graphs", "done"), ("pass", "done"),
    ]  # fmt: skip


def test_what_finds_no_time_is_told(tmp_path: Path) -> None:
    outcomes = run([_part("pass")], tmp_path, 0)
    assert [outcome.end for outcome in outcomes] == ["out of time"]
    (told,) = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert (told["part"], told["end"]) == ("pass", "out of time")


@pytest.mark.parametrize("missing", [{"tool": ("no-such-tool",)}, {"package": "no_such_package"}], ids=str)
def test_a_part_without_its_tools_is_skipped(missing: dict[str, str], tmp_path: Path) -> None:
    (outcome,) = run([Part("part", ("-c", "pass"), 60, **missing)], tmp_path, 60)  # type: ignore[arg-type]
    assert outcome.end == "skipped"
    assert str(outcome).endswith("is not installed (0 s)")


@pytest.mark.parametrize(
    "part",
    BENCHMARKS + [part.ungraphed for part in PARTS if part.without_graphs],
    ids=lambda part: part.name,
)
def test_every_benchmark_understands_its_arguments(
    part: Part, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    _, dash_m, module, *arguments = part.command(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit):
        importlib.import_module(module).main()
    assert dash_m == "-m"
    assert "CUDA device" in capsys.readouterr().err


def test_what_matters_most_comes_first_and_all_fit_what_is_carried_back() -> None:
    assert [part.name for part in PARTS[:3]] == ["parity", "engine 480x832", "kernels"]
    # A part that is run again without graphs has most likely written nothing before.
    files = [part for part in PARTS if part.writes]
    assert len(files) + len(("gpu.json", "gpu.log")) <= 8


def test_pytorch_and_triton_are_enough_for_every_benchmark() -> None:
    modules = [part.arguments[1] for part in BENCHMARKS]
    code = BARE.format(absent=set(ABSENT), modules=["benchmarks.gpu", *modules])
    imported = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert imported.returncode == 0, imported.stderr
