"""Plans of TensorRT and TensorRT-RTX on cards of several kinds, by a stand-in for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engines.errors import PlanError
from engines.plans.libraries import LibraryName
from engines.plans.store import PlanStore
from engines.plans.tensorrt_builder import Card
from serving.cli.main import main
from serving.pipeline import stage_engine
from serving.pipeline.stage_engine import StageChoice, require_plans
from tests.support import fake_tensorrt_runtime
from tests.support.fake_tensorrt_runtime import Builder
from tests.support.onnx_graphs import tiny_graph

SIZE = (32, 48)


def on_card(monkeypatch: pytest.MonkeyPatch, capability: str, *installed: LibraryName) -> None:
    """On a card of this kind, with these libraries."""

    def module(library: LibraryName) -> Any:
        if library not in installed:
            raise PlanError(f"{library} is not installed")
        return fake_tensorrt_runtime

    monkeypatch.setattr(Card, "here", lambda: Card(capability, "a card"))
    monkeypatch.setattr(stage_engine, "plan_module", module)


def choice(models: Path) -> StageChoice:
    return StageChoice("decoder", "tensorrt", "pocket", "own", models, torch.device("cuda"), [SIZE])


def keep_other_plan(models: Path, library: LibraryName) -> None:
    """One of other weights."""
    store = PlanStore(models / "pocket", models / "lock")
    builder = Builder(library, models / "graphs")
    store.obtain(
        lambda folder: tiny_graph(folder, name="decoder-first-1"), SIZE, builder, builder.target(["sm_89"]),
        "none", lambda step: True,
    )  # fmt: skip


def command(capability: str, library: LibraryName) -> str:
    asked = f"--stage decoder --for {capability} --size 32x48 --library {library}"
    return f"make it: longtake plan pocket {asked}"


@pytest.mark.parametrize(
    ("capability", "installed", "remedy"),
    [
        ("sm_90", ["tensorrt"], command("sm_90", "tensorrt")),
        ("sm_90", ["tensorrt-rtx", "tensorrt"], command("sm_90", "tensorrt")),
        ("sm_90", ["tensorrt-rtx"], "tensorrt is not installed"),
        ("sm_90", [], "tensorrt is not installed"),
        ("sm_89", ["tensorrt-rtx", "tensorrt"], command("sm_89", "tensorrt-rtx")),
        ("sm_89", ["tensorrt"], command("sm_89", "tensorrt")),
        ("sm_89", [], "tensorrt-rtx is not installed"),
    ],
)
def test_without_plans_the_remedy_is_of_a_library_that_runs_on_the_card_and_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str, installed: list[LibraryName], remedy: str
) -> None:
    on_card(monkeypatch, capability, *installed)
    with pytest.raises(PlanError, match=f"{remedy}$"):
        require_plans(choice(tmp_path))


@pytest.mark.parametrize("there", [["tensorrt-rtx"], ["tensorrt"], ["tensorrt-rtx", "tensorrt"]], ids=str)
def test_of_two_libraries_the_first_that_has_plans_says_what_is_wrong_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[LibraryName]
) -> None:
    on_card(monkeypatch, "sm_89", "tensorrt-rtx", "tensorrt")
    for library in there:
        keep_other_plan(tmp_path, library)
    with pytest.raises(PlanError, match=f"was made of other weights .*; {command('sm_89', there[0])}$"):
        require_plans(choice(tmp_path))


TIMELINE = """
version: 1
model: tiny-taehv
height: 32
width: 48
seconds: 0.5
cues:
  - frame: 0
    prompt: a red balloon
"""


def make_film(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """On the CPU, with stages that look for plans as on a card."""
    on_card(monkeypatch, "sm_89", "tensorrt-rtx")
    monkeypatch.setattr(StageChoice, "looks_for_plans", property(lambda self: self.engine == "auto"))
    timeline = folder / "timeline.yaml"
    timeline.write_text(TIMELINE)
    film, models = str(folder / "film.mp4"), str(folder / "models")
    assert main(["generate", str(timeline), "-o", film, "--models-dir", models, *options]) == 0


def test_who_makes_a_film_by_auto_on_a_card_without_plans_is_told_why_pytorch_runs_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_film(tmp_path, monkeypatch)
    told = capsys.readouterr().err.splitlines()
    for stage, graph in (("text", "text-64"), ("decoder", "decoder-first-1 at 32x48")):
        (line,) = (line for line in told if line.startswith(f"{stage} engine: torch, since there is no plan of"))
        assert f"of {graph} in" in line
        assert f"; make it: longtake plan tiny-taehv --stage {stage} --for sm_89 " in line


def test_text_weights_in_int8_are_said_to_have_no_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_film(tmp_path, monkeypatch, "--text-weights", "int8")
    assert "text engine: torch, since its weights are in INT8, which plans" in capsys.readouterr().err
