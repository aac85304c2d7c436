"""Plans of TensorRT and TensorRT-RTX on cards of several kinds, by a stand-in for both."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from engines.bindings.decoder import GraphDecoder
from engines.bindings.plan_runtime import load_plan
from engines.bindings.stage_session import StageSession
from engines.errors import PlanError
from engines.export import decoders
from engines.export.graph import StageGraph
from engines.loading.model import Autoencoder
from engines.plans.libraries import PACKAGES, LibraryName
from engines.plans.store import Plan, PlanStore
from engines.plans.tensorrt_builder import Card
from kernels.dispatch import EAGER
from serving.cli.main import main
from serving.cli.weights import plan as plan_command
from serving.config import ServerConfig, StageEngine
from serving.launch import memory_preset
from serving.launch.memory_preset import memory_plan
from serving.pipeline import stage_engine
from serving.pipeline.stage_engine import StageChoice, likely_plans, open_decoder, require_plans
from serving.weights.loader import open_model
from tests.engines.vae.pieces import assert_equal, decode
from tests.support import fake_tensorrt_runtime
from tests.support.fake_tensorrt_runtime import Builder
from tests.support.onnx_graphs import tiny_graph

SIZE = (32, 48)
CPU = torch.device("cpu")
BOTH: tuple[LibraryName, ...] = ("tensorrt-rtx", "tensorrt")
LATENTS = torch.randn(1, 6, 16, 4, 6, generator=torch.Generator().manual_seed(1))


def on_card(monkeypatch: pytest.MonkeyPatch, capability: str, *installed: LibraryName) -> None:
    """On a card of this kind, with these libraries."""
    monkeypatch.setattr(Card, "here", lambda: Card(capability, "a card"))
    for library in BOTH:
        there = fake_tensorrt_runtime if library in installed else None
        monkeypatch.setitem(sys.modules, PACKAGES[library].module, there)


def choice(models: Path) -> StageChoice:
    return StageChoice("decoder", "tensorrt", "pocket", "own", models, torch.device("cuda"), [SIZE])


def keep_plan(models: Path, library: LibraryName, export: Callable[[Path], StageGraph]) -> None:
    builder, store = Builder(library, models / "graphs"), PlanStore(models / "pocket", models / "lock")
    store.obtain(export, SIZE, builder, builder.target(["sm_89"]), "none", lambda step: True)


def command(capability: str, library: LibraryName) -> str:
    asked = f"--stage decoder --for {capability} --size 32x48 --library {library}"
    return f"make it: longtake plan pocket {asked}"


@pytest.mark.parametrize(
    ("capability", "installed", "remedy"),
    [
        ("sm_90", ["tensorrt"], command("sm_90", "tensorrt")),
        ("sm_90", ["tensorrt-rtx", "tensorrt"], command("sm_90", "tensorrt")),
        ("sm_90", ["tensorrt-rtx"], "tensorrt is not installed, .*"),
        ("sm_90", [], "tensorrt is not installed, .*"),
        ("sm_89", ["tensorrt-rtx", "tensorrt"], command("sm_89", "tensorrt-rtx")),
        ("sm_89", ["tensorrt"], command("sm_89", "tensorrt")),
        ("sm_89", [], "tensorrt-rtx is not installed, .*"),
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
        keep_plan(tmp_path, library, partial(tiny_graph, name="decoder-first-1"))
    with pytest.raises(PlanError, match=f"was made of other weights .*; {command('sm_89', there[0])}$"):
        require_plans(choice(tmp_path))


def copied(graph: Path, place: Path) -> StageGraph:
    return StageGraph.load(shutil.copytree(graph, place))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With plans of both libraries, for tests that leave them as they are; TensorRT-RTX's as errors say."""
    folder = tmp_path_factory.mktemp("models")
    asked = command("sm_89", "tensorrt-rtx").removeprefix("make it: longtake ")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plan_command, "plan_builder", lambda library: Builder(library, folder / "graphs"))
        assert main([*asked.split(), "--models-dir", str(folder)]) == 0
    for graph in (folder / "graphs" / "tensorrt-rtx").iterdir():
        keep_plan(folder, "tensorrt", partial(copied, graph))
    return folder


def run_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans and tensors that are to be on the card."""
    monkeypatch.setattr(stage_engine, "load_plan", lambda plan, device: load_plan(plan, CPU))
    monkeypatch.setattr(stage_engine, "StageSession", lambda runtime, device: StageSession(runtime, CPU))


def pocket_codec() -> Autoencoder:
    return open_model("pocket", Path("none"), CPU, torch.float32, networks=["codec"]).model.vae


def libraries_of(plans: Sequence[Plan]) -> set[str]:
    return {plan.manifest.key.library for plan in plans}


@pytest.mark.parametrize("library", BOTH)
def test_a_plan_is_loaded_by_its_own_library_and_runs(
    models: Path, monkeypatch: pytest.MonkeyPatch, library: LibraryName
) -> None:
    on_card(monkeypatch, "sm_89", library)
    plan, *_ = require_plans(choice(models))
    runtime = load_plan(plan, CPU)
    latents = LATENTS[:, :1].half()
    made = StageSession(runtime, CPU).run({decoders.LATENTS: latents})[decoders.PICTURES]
    codec = pocket_codec()
    torch.testing.assert_close(
        made, codec.decode(latents.float(), codec.start_decoding()).frames, rtol=0, atol=0.01
    )
    assert libraries_of([plan]) == {library}
    kept = [file.name for file in plan.folder.glob("*.cache")]
    assert kept == (["runtime-sm_89.cache"] if library == "tensorrt-rtx" else [])


@pytest.mark.parametrize("why", ["plans", "none", "other sizes"])
def test_a_servers_memory_counts_plans_and_their_activations_without_reading_weights(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    on_card(monkeypatch, "sm_89", *BOTH)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
    monkeypatch.setattr(stage_engine, "open_model", None)
    decoder = replace(choice(tmp_path if why == "none" else models), other_sizes=why == "other sizes")
    monkeypatch.setattr(memory_preset, "served_stages", lambda config: [decoder])
    planned = [line for line in memory_plan(ServerConfig(device="cuda")).fixed if "plan" in line.what]
    plans = sum(plan.manifest.bytes for plan in likely_plans(choice(models)))
    assert [line.nbytes for line in planned] == ([plans, 0] if why == "plans" else [])


@pytest.mark.parametrize("engine", ["tensorrt", "auto"])
def test_a_decoder_is_run_by_plans_that_are_there(
    models: Path, monkeypatch: pytest.MonkeyPatch, engine: StageEngine
) -> None:
    on_card(monkeypatch, "sm_89", *BOTH)
    run_on_cpu(monkeypatch)
    chosen = open_decoder(pocket_codec(), replace(choice(models), engine=engine), EAGER)
    assert (chosen.engine, chosen.why) == ("tensorrt", "")
    assert isinstance(chosen.decoder, GraphDecoder)
    blocks = LATENTS.split([2, 1, 3], dim=1)
    assert_equal(decode(chosen.decoder, blocks), decode(pocket_codec(), blocks), 0.01)


def test_plans_of_tensorrt_rtx_are_preferred_and_tensorrts_taken_where_it_has_none(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_card(monkeypatch, "sm_89", *BOTH)
    preferred = require_plans(choice(models))
    assert libraries_of(preferred) == {"tensorrt-rtx"}
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / preferred[-1].folder.relative_to(models))
    assert libraries_of(require_plans(choice(tmp_path))) == {"tensorrt"}


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
