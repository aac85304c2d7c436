"""`longtake quantize`, from the command line to a film."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engines.config.presets import preset
from engines.config.quantization import QuantizationConfig
from engines.loading.lora import LoRAFile
from engines.loading.quantized_file import QUANTIZED_FILE, QuantizedHeader
from engines.quantization import modelopt_ranges
from engines.quantization.calibration import calibrate
from serving.cli.main import main
from serving.cli.weights.quantize import default_blocks, moving_pictures, watched_stream
from serving.offline.provenance import Facts
from serving.weights.loader import open_model
from tests.support.quantized import POCKET, POCKET_INT8, pocket, quantized_state, write_pocket

SMALL = ["--blocks", "2", "--size", "32x48"]
PROMPTS = ("a red balloon over hills", "a blue boat on the sea")
UP = "blocks.1.ffn.0"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    prompts = folder / "prompts.txt"
    prompts.write_text("\n\n".join(PROMPTS))
    asked = ["quantize", "pocket", "--to", "int8", "--models-dir", str(folder), "--prompts", str(prompts)]
    assert main([*asked, "--hold-back", "blocks.5.ffn.*", *SMALL]) == 0
    return folder


def test_it_makes_a_model_that_generates(models: Path, tmp_path: Path) -> None:
    timeline, film = tmp_path / "timeline.yaml", tmp_path / "film.mp4"
    timeline.write_text('cues:\n  - at: "0:00"\n    prompt: a red balloon over hills\n')
    asked = ["generate", str(timeline), "--seconds", "1", "--models-dir", str(models)]
    assert main([*asked, "-o", str(film), "--model", "pocket-int8", "--text-weights", "int8"]) == 0
    facts = Facts.of_film(film)
    assert facts.int8_text
    header = QuantizedHeader.read(models / "pocket-int8" / QUANTIZED_FILE)
    assert facts.weights["quantization"] == str(header.recipe)
    again = tmp_path / "again.mp4"
    assert main(["generate", str(film), "-o", str(again), "--models-dir", str(models)]) == 0
    assert again.stat().st_size == film.stat().st_size


def test_a_card_that_is_not_made_for_its_format_is_refused_before_it_is_loaded(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    timeline = tmp_path / "timeline.yaml"
    timeline.write_text('cues:\n  - at: "0:00"\n    prompt: a red balloon over hills\n')
    asked = ["generate", str(timeline), "-o", str(tmp_path / "film.mp4"), "--models-dir", str(models)]
    assert main([*asked, "--device", "cuda", "--model", "pocket-int8"]) == 2
    assert "sm_100 multiplies INT8 at a small part of its rate of FP8" in capsys.readouterr().err


def test_its_denoiser_has_no_plans(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timeline = tmp_path / "timeline.yaml"
    timeline.write_text('cues:\n  - at: "0:00"\n    prompt: a red balloon over hills\n')
    asked = ["generate", str(timeline), "-o", str(tmp_path / "film.mp4"), "--models-dir", str(models)]
    assert main([*asked, "--model", "pocket-int8", "--denoiser-engine", "onnx"]) == 2
    assert "pocket-int8 is in 8 bits, which plans of a denoiser are not" in capsys.readouterr().err


def test_a_model_is_watched_in_streams_such_as_it_makes_until_their_window_is_full() -> None:
    longlive, restyling = preset("longlive-1.3b"), preset("streamdiffusionv2-1.3b")
    assert (watched_stream(longlive), default_blocks(longlive.stream)) == (longlive.stream, 5)
    stream = watched_stream(restyling)
    assert (stream, default_blocks(stream)) == (restyling.video, 7)
    small = replace(stream, height=48, width=80)
    first, second = (moving_pictures(small, 9, number) for number in (0, 1))
    assert (first.shape, first.dtype) == ((9, 48, 80, 3), torch.uint8)
    assert not torch.equal(first, second)
    assert (first[1:].float() - first[:-1].float()).abs().max() > 0


def test_the_file_says_how_it_was_made(models: Path) -> None:
    header = QuantizedHeader.read(models / "pocket-int8" / QUANTIZED_FILE)
    assert header.model == "pocket"
    assert header.recipe.smoothing == 0.5
    assert header.recipe.held_back == ("blocks.5.ffn.0", "blocks.5.ffn.2")
    assert header.source == open_model("pocket", models, CPU, torch.float32).model.identity["transformer"]
    assert len(header.prompts) == 64


def test_loras_are_merged_before_anything_is_watched_or_rounded(models: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    down, up = (torch.randn(shape, generator=generator) / 10 for shape in ((2, 192), (512, 2)))
    factors = {"lora_A": down, "lora_B": up}
    lora = LoRAFile(tmp_path / "style.safetensors", 0.5)
    save_file({f"diffusion_model.{UP}.{name}.weight": tensor for name, tensor in factors.items()}, lora.path)
    asked = ["quantize", "pocket", "--to", "int8", "--models-dir", str(models), "--lora", str(lora), *SMALL]
    assert main([*asked, "--output", str(tmp_path / "made"), "--prompts", str(models / "prompts.txt")]) == 0

    merged = pocket()
    merged.transformer.state_dict()[f"{UP}.weight"] += 0.5 * up @ down
    prompts = open_model("pocket", models, CPU, torch.bfloat16, networks=["text_encoder"]).prompts
    stream = replace(POCKET.stream, height=32, width=48)
    statistics = calibrate(merged, [prompts.encode(text) for text in PROMPTS], stream, 2)
    wanted = quantized_state(merged.transformer, POCKET_INT8, statistics)
    file = tmp_path / "made" / QUANTIZED_FILE
    made = load_file(file)
    assert QuantizedHeader.read(file).loras == (lora.mark,)
    opened = open_model(str(file.parent), models, CPU, torch.float32, networks=["transformer"])
    assert opened.model.identity["loras"] == lora.mark
    assert all(torch.equal(made[name], tensor.to(made[name].dtype)) for name, tensor in wanted.items())


def test_without_smoothing_and_compensation_nothing_is_watched(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["quantize", "pocket", "--to", "fp8", "--rounding", "nearest", "--models-dir", str(models)]
    assert main([*asked, "--output", str(tmp_path / "made")]) == 0
    printed = capsys.readouterr()
    assert "watching" not in printed.err
    assert "pocket in fp8, rounding nearest" in printed.out
    assert QuantizedHeader.read(tmp_path / "made" / QUANTIZED_FILE).prompts == ""


@pytest.mark.parametrize(
    ("base", "loras", "told"),
    [("pocket", ("0.5 of cafe",), "holds pocket with LoRAs"), ("tiny", (), "holds tiny: move")],
)
def test_what_is_made_of_something_else_is_not_written_over(
    tmp_path: Path, base: str, loras: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pocket(tmp_path / "pocket-int8", QuantizationConfig("int8"), base, loras)
    before = (tmp_path / "pocket-int8" / QUANTIZED_FILE).read_bytes()
    assert main(["quantize", "pocket", "--to", "int8", "--models-dir", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err
    assert (tmp_path / "pocket-int8" / QUANTIZED_FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["pocket-int8", "--to", "fp8"], "pocket-int8 is quantized already; quantize pocket itself"),
        (["nope", "--to", "int8"], "unknown model 'nope'"),
        (["tiny", "--to", "int8"], "tiny has random weights, of which nothing can be made"),
        (["pocket", "--to", "int8", "--hold-back", "blocks.9.*"], "'blocks.9.*' names no layer that is quantized"),
        (["pocket", "--to", "int8", "--smoothing", "3"], "smoothing is 3.0; it must lie between 0 and 1"),
        (["pocket", "--to", "int8", "--prompts", "/nowhere"], "the prompts in /nowhere cannot be read"),
        (["pocket", "--to", "fp8", "--ranges", "modelopt"], "--ranges modelopt changes nothing in fp8"),
        (["pocket", "--to", "int8", "--blocks", "1"], "blocks is 1; it must be at least 2"),
        (["pocket", "--to", "int8", "--device", "cuda"], "torch finds no CUDA device here; say --device cpu"),
        (
            ["pocket", "--to", "int8", "--output", "/dev/null/x"],
            "/dev/null is no folder to write to; name another",
        ),
        (
            ["pocket", "--to", "int8", "--lora", "x.safetensors"],
            "the model without LoRAs; name this one by --output",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    models: Path, asked: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", *asked, "--models-dir", str(models)]) == 2
    assert complaint in capsys.readouterr().err
    assert not (models / "pocket-fp8").exists()


def test_ranges_of_a_package_that_is_missing_are_refused_before_anything_is_done(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(modelopt_ranges, "find_spec", lambda name: None)
    asked = ["quantize", "pocket", "--to", "int8", "--ranges", "modelopt", "--output", str(tmp_path / "made")]
    assert main([*asked, "--models-dir", str(models)]) == 2
    assert "modelopt is not installed" in (told := capsys.readouterr().err)
    assert "pip install 'longtake[quantize]'" in told
    assert not (tmp_path / "made").exists()
