"""What small graphics cards are served with: on a card that is told to torch, not one that is here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engines.config.quantization import QuantizationConfig, WeightFormat
from engines.errors import ConfigError
from engines.loading.quantized_file import QUANTIZED_FILE, QuantizedHeader, write_quantized
from serving.cli.main import main
from serving.config import ServerConfig
from serving.launch.memory_preset import fill_in, memory_plan
from serving.launch.startup_checks import check_memory
from serving.pipeline.stage_engine import served_stages

GIGABYTE = 10**9


def config(models: Path, **settings: object) -> ServerConfig:
    asked = {"model": "longlive-1.3b", "device": "cuda", "dtype": "bfloat16", "models_dir": models, **settings}
    return ServerConfig.model_validate(asked)


def pretend_card(monkeypatch: pytest.MonkeyPatch, free: int, total: int, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, total))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 4090, with what a desktop leaves of it."""
    pretend_card(monkeypatch, 23 * GIGABYTE, 25 * GIGABYTE, (8, 9))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with the header of a quantized LongLive."""
    write_header(tmp_path, "int8")
    return tmp_path


def write_header(
    models: Path, weights: WeightFormat, model: str = "longlive-1.3b", loras: tuple[str, ...] = ()
) -> None:
    """That of a quantized LongLive, without its tensors, or of what lies in its place."""
    folder = models / f"longlive-1.3b-{weights}"
    folder.mkdir()
    header = QuantizedHeader(model, QuantizationConfig(weights), "", loras, "", "see the card", "0.1")
    write_quantized(folder / QUANTIZED_FILE, {"x": torch.ones(1)}, header, torch.bfloat16)


@pytest.mark.usefixtures("card")
def test_a_24_gb_card_gets_8_bits_a_tiny_decoder_and_text_on_the_cpu(models: Path) -> None:
    chosen, notes = fill_in(config(models, preset="24gb"), {"preset"})
    assert (chosen.model, chosen.codec) == ("longlive-1.3b-int8", "tiny")
    assert (chosen.text_device, chosen.text_weights) == ("cpu", "int8")
    assert chosen.kernels == "keys=int8,values=int8,value_sums=fp16"
    assert chosen.slots == 4
    assert notes == ("preset 24gb",)
    plan = memory_plan(chosen)
    assert plan.nbytes(4) / GIGABYTE == pytest.approx(13.9, rel=0.01)
    assert plan.host[0].nbytes / GIGABYTE == pytest.approx(6.7, rel=0.03)
    check_memory(chosen, plan)


@pytest.mark.usefixtures("card")
def test_a_small_card_is_noticed_and_it_is_said(models: Path) -> None:
    chosen, notes = fill_in(config(models), set())
    assert (chosen.preset, chosen.model) == ("24gb", "longlive-1.3b-int8")
    assert notes[0].startswith("preset 24gb, since the card has 25.00 GB")
    assert chosen.codec == "own"
    assert "longtake download longlive-1.3b --with-tiny-codec" in notes[1]


@pytest.mark.usefixtures("card")
def test_what_is_given_stays(models: Path) -> None:
    given = {"codec": "own", "kernels": "auto", "text_device": "cuda", "slots": 1}
    chosen, _ = fill_in(config(models, preset="24gb", **given), {"preset", *given})
    assert {name: getattr(chosen, name) for name in given} == given
    assert chosen.model == "longlive-1.3b-int8"


def test_a_16_gb_card_gets_fewer_sessions(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch, 15 * GIGABYTE, 17 * GIGABYTE, (8, 6))
    assert fill_in(config(models), set()).config.preset == "16gb"
    assert fill_in(config(models, preset="16gb"), {"preset"}).config.slots == 2


def test_sessions_that_share_passes_leave_room_for_fewer(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch, 16 * GIGABYTE, 21 * GIGABYTE, (8, 9))
    for batch, slots in ((1, 4), (4, 2)):
        chosen = fill_in(config(models, preset="24gb", batch=batch), {"preset", "batch"}).config
        assert chosen.slots == slots
        check_memory(chosen, memory_plan(chosen))


@pytest.mark.parametrize(
    ("capability", "sums"), [((8, 0), ",value_sums=fp16"), ((9, 0), ""), ((12, 0), ",value_sums=fp16")], ids=str
)
def test_a_slice_of_a_large_card_is_served_as_a_small_one(
    models: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], sums: str
) -> None:
    pretend_card(monkeypatch, 20 * GIGABYTE, 21 * GIGABYTE, capability)
    chosen = fill_in(config(models), set()).config
    assert (chosen.preset, chosen.kernels) == ("24gb", f"keys=int8,values=int8{sums}")
    assert (chosen.backends.attention, chosen.backends.keys) == ("triton", "int8")


def test_a_large_card_and_a_small_model_need_none(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch, 79 * GIGABYTE, 80 * GIGABYTE, (9, 0))
    assert fill_in(config(models), set()).config == config(models, preset="none")
    pretend_card(monkeypatch, 23 * GIGABYTE, 25 * GIGABYTE, (8, 9))
    assert fill_in(config(models, model="pocket"), set()).config.preset == "none"
    assert fill_in(config(models, preset="none"), {"preset"}).config == config(models, preset="none")


@pytest.mark.usefixtures("card")
def test_without_a_quantized_model_the_preset_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"make it by `longtake quantize longlive-1\.3b --to int8`"):
        fill_in(config(tmp_path, preset="24gb"), {"preset"})
    chosen, notes = fill_in(config(tmp_path), set())
    assert chosen.model == "longlive-1.3b"
    assert "weights stay in 16 bits" in notes[-1]


@pytest.mark.parametrize(
    ("capability", "here", "other"), [((10, 0), "int8", "fp8"), ((8, 6), "fp8", "int8")], ids=str
)
def test_a_model_is_served_in_8_bits_that_the_card_multiplies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], here: WeightFormat,
    other: WeightFormat,
) -> None:  # fmt: skip
    pretend_card(monkeypatch, 20 * GIGABYTE, 21 * GIGABYTE, capability)
    write_header(tmp_path, here)
    chosen, notes = fill_in(config(tmp_path), set())
    assert chosen.model == "longlive-1.3b"
    assert notes[-1] == f"weights stay in 16 bits; `longtake quantize longlive-1.3b --to {other}` rounds them"
    with pytest.raises(ConfigError, match=f"make it by `longtake quantize longlive-1.3b --to {other}`"):
        fill_in(config(tmp_path, preset="24gb"), {"preset"})
    write_header(tmp_path, other)
    assert fill_in(config(tmp_path), set()).config.model == f"longlive-1.3b-{other}"


def test_beside_fp32_a_large_blackwell_keeps_its_weights(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch, 20 * GIGABYTE, 21 * GIGABYTE, (10, 0))
    chosen, notes = fill_in(config(models, dtype="float32"), {"dtype"})
    assert chosen.model == "longlive-1.3b"
    assert notes[-1] == "weights stay in float32; beside it this card multiplies no 8 bits"


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("made_of", [("longlive-1.3b", "0.5 of cafe"), ("pocket",)], ids=str)
def test_what_was_made_of_something_else_is_not_taken_for_the_model(
    tmp_path: Path, made_of: tuple[str, ...]
) -> None:
    model, *loras = made_of
    write_header(tmp_path, "int8", model, tuple(loras))
    assert fill_in(config(tmp_path), set()).config.model == "longlive-1.3b"
    with pytest.raises(ConfigError, match=r"make it by `longtake quantize longlive-1\.3b --to int8`"):
        fill_in(config(tmp_path, preset="24gb"), {"preset"})


@pytest.mark.usefixtures("card")
def test_with_loras_weights_stay_in_16_bits(models: Path) -> None:
    chosen, notes = fill_in(config(models, preset="24gb", lora="style.safetensors"), {"preset", "lora"})
    assert (chosen.model, len(chosen.lora)) == ("longlive-1.3b", 1)
    assert "`longtake quantize longlive-1.3b --lora ... --output ...` merges LoRAs" in notes[-1]


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("engine", "device", "weights"),
    [("tensorrt", None, "plain"), ("onnx", "cpu", "plain"), ("torch", "cpu", "int8")],
)
def test_the_text_encoder_is_kept_as_its_engine_takes_it(
    models: Path, engine: str, device: str | None, weights: str
) -> None:
    chosen, _ = fill_in(config(models, text_engine=engine), {"text_engine"})
    assert (chosen.text_device, chosen.text_weights) == (device, weights)
    served_stages(chosen)


def test_a_card_that_is_asked_for_and_not_there_needs_no_preset(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fill_in(config(models), {"model"}).config.preset == "none"
    with pytest.raises(ConfigError, match="torch finds no CUDA device here"):
        fill_in(config(models, preset="24gb"), {"preset"})


def test_a_preset_for_a_graphics_card_is_refused_without_one(models: Path) -> None:
    with pytest.raises(ConfigError, match="preset 24gb is for a graphics card; the device is cpu"):
        fill_in(config(models, device="cpu", preset="24gb"), {"preset"})


def test_a_card_of_this_machine_says_nothing_of_those_in_a_cluster(models: Path, card: None) -> None:
    assert fill_in(config(models, address="auto"), {"model"}).config.preset == "none"
    with pytest.raises(ConfigError, match=r"preset 24gb is for a graphics card of this machine; leave it out"):
        fill_in(config(models, address="auto", preset="24gb"), {"preset"})


@pytest.mark.usefixtures("card")
def test_what_does_not_fit_is_refused_with_what_would(models: Path) -> None:
    asked = config(models, preset="none", text_device="cpu", model="longlive-1.3b-int8", slots=3)
    with pytest.raises(ConfigError, match=r"3 sessions needs 27\.\d+ GB.* 23\.00 GB are free; take --slots 2"):
        check_memory(asked, memory_plan(asked))
    whole = config(models, preset="none", slots=1)
    with pytest.raises(ConfigError, match=r"take a quantized or smaller model .*, --preset 24gb or 16gb$"):
        check_memory(whole, memory_plan(whole))


def test_a_preset_that_does_not_fit_is_not_its_own_remedy(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch, 5 * GIGABYTE, 8 * GIGABYTE, (8, 6))
    chosen = fill_in(config(models, preset="16gb"), {"preset"}).config
    with pytest.raises(ConfigError, match=r"take a quantized or smaller model .*, smaller --sizes$"):
        check_memory(chosen, memory_plan(chosen))


def test_models_says_what_one_takes(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "longlive-1.3b", "--models-dir", str(models)]) == 0
    printed = capsys.readouterr().out
    assert "longlive-1.3b, everything on the card:" in printed
    assert "--preset 24gb or 16gb:" in printed
    assert "1.59 GB  transformer, int8" in printed
