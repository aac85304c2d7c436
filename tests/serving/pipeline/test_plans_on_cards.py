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
