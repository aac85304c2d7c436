"""`longtake plan`, from the command line to plans in a model's folder."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

from engines.plans import libraries
from engines.plans.manifest import PlanManifest
from engines.plans.store import PLANS
from serving.cli.main import main
from serving.weights.downloader import LOCK

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed, the extra `plans`"
)


def plan(models: Path, model: str, stage: str, *options: str) -> int:
    return main(["plan", model, "--stage", stage, "--models-dir", str(models), *options])


def manifests(models: Path, model: str) -> dict[str, PlanManifest]:
    found = [PlanManifest.read(folder) for folder in sorted((models / model / PLANS).glob("*-*"))]
    return {manifest.key.name: manifest for manifest in found}


@needs_rtx
@pytest.mark.parametrize(
    ("stage", "names", "recipe"),
    [
        (
            "decoder",
            ["decoder-first-1", "decoder-first-2", "decoder-first-3", "decoder-steady-1", "decoder-steady-3"],
            "fp16, norms in fp32",
        ),
        ("text", ["text-64"], "bf16"),
        ("denoiser", ["denoiser-3-of-12"], "bf16, norms and rotations in fp32"),
    ],
)
def test_every_stage_of_the_pocket_model_becomes_plans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, names: list[str], recipe: str
) -> None:
    assert plan(tmp_path, "pocket", stage, "--for", "sm_120,sm_89") == 0
    made = manifests(tmp_path, "pocket")
    assert list(made) == names
    assert {manifest.key.recipe for manifest in made.values()} == {recipe}
    assert {manifest.key.size for manifest in made.values()} == {None if stage == "text" else (96, 160)}
    printed = capsys.readouterr()
    assert f"{names[-1]}: Exporting the graph 0/1" in printed.err
    assert "sm_89, sm_120" in printed.out
    assert "licence of the weights: Apache-2.0; of the library: " in printed.out


ON_CPU = ("--for", "cpu", "--library", "onnxruntime")


def int8_plan(models: Path, prompts: int, *options: str) -> int:
    file = models / "prompts.txt"
    file.write_text("a red balloon over hills\n" * prompts)
    made = ("--size", "32x48", "--blocks", "2", "--prompts", str(file))
    return plan(models, "pocket", "decoder", *ON_CPU, "--int8-convs", *made, *options)


@pytest.mark.slow
def test_a_decoder_has_int8_convolutions_and_its_manifest_says_what_they_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(tmp_path, "pocket", "decoder", *ON_CPU, "--size", "32x48") == 0
    assert int8_plan(tmp_path, prompts=2) == 0
    made = manifests(tmp_path, "pocket")
    plain, int8 = made["decoder-steady-3"], made["decoder-steady-3-int8"]
    assert (plain.key.recipe, int8.key.recipe) == ("fp32", "fp32, convolutions in INT8")
    assert int8.bytes < 0.5 * plain.bytes
    assert plain.loss is None
    assert int8.loss is not None
    assert int8.loss.blocks == 2
    assert 30 < int8.loss.worst_psnr_db <= int8.loss.median_psnr_db < 60
    assert f"against those in fp32: {int8.loss.median_psnr_db} dB in the median" in capsys.readouterr().out


def test_of_one_prompt_nothing_is_left_to_see_the_loss_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert int8_plan(tmp_path, prompts=1) == 2
    assert "one prompt is not enough" in capsys.readouterr().err
    assert not (tmp_path / "pocket").exists()


@pytest.mark.parametrize(
    ("model", "stage", "complaint"),
    [
        ("pocket", "text", "--int8-convs is of the decoder, not of the text; say --stage decoder"),
        ("tiny", "decoder", "tiny has random weights, of which nothing can be made"),
        ("streamdiffusionv2-1.3b", "decoder", "only restyles videos: it makes no streams of prompts"),
    ],
)
def test_int8_convolutions_that_cannot_be_are_refused(
    tmp_path: Path, model: str, stage: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(tmp_path, model, stage, *ON_CPU, "--int8-convs") == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("asked", [["--prompts", "prompts.txt"], ["--blocks", "3"], ["--device", "cpu"]])
def test_options_of_streams_that_are_not_made_are_refused(
    tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(tmp_path, "pocket", "decoder", *ON_CPU, *asked) == 2
    assert f"{asked[0]} is of the streams that --int8-convs makes" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_what_is_there_is_not_built_again(tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        assert plan(tmp_path, "pocket", "text", "--for", "sm_89") == 0
        made.append(manifests(tmp_path, "pocket"))
    assert made[0] == made[1]


def started(models: Path) -> subprocess.Popen[str]:
    asked = ["plan", "tiny", "--stage", "text", "--for", "sm_89", "--models-dir", str(models)]
    return subprocess.Popen([sys.executable, "-m", "serving.cli.main", *asked], stderr=subprocess.PIPE, text=True)


@needs_rtx
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_it_can_be_stopped_and_keeps_the_plans_that_were_done(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("text-128: "):
            pass
        process.send_signal(number)
        told = process.stderr.read()
    assert process.returncode == 130
    assert "was stopped; nothing of it is left" in told
    assert list(manifests(tmp_path, "tiny")) == ["text-64"]


@needs_rtx
def test_it_waits_for_whoever_writes_to_the_models_folder(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    with FileLock(folder / LOCK):
        process = started(tmp_path)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line == "text-64: Waiting for another command that writes here 0/1\n"
        assert process.poll() is None
    with process:
        process.stderr.read()
    assert process.returncode == 0
    assert list(manifests(tmp_path, "tiny")) == ["text-128", "text-256", "text-64"]


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["tiny-taehv", "--for", "sm_90"], "there is no TensorRT-RTX for sm_90, Hopper"),
        (["pocket", "--for", "4090"], "'4090' is no compute capability"),
        (["nope", "--for", "sm_89"], "unknown model 'nope'"),
        (["longlive-1.3b", "--for", "sm_89"], "run `longtake download longlive-1.3b`"),
        (["pocket", "--for", "sm_89", "--size", "90x160"], "height"),
        (["pocket", "--for", "sm_89", "--codec", "tiny"], "pocket has no tiny codec"),
    ],
)
@needs_rtx
def test_what_cannot_be_is_refused_in_words(
    tmp_path: Path, asked: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(tmp_path, asked[0], "decoder", *asked[1:]) == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_missing_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    assert plan(tmp_path, "pocket", "decoder", "--for", "sm_89") == 2
    assert capsys.readouterr().err == (
        "longtake: tensorrt-rtx is not installed, which builds plans: pip install 'longtake[plans]'\n"
    )
    assert list(tmp_path.iterdir()) == []
