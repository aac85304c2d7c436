"""Quantized models found by name and by folder, listed, and refused where something is wrong with them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.config.quantization import QuantizationConfig
from engines.errors import ConfigError, WeightsError
from engines.loading.lora import LoRAFile
from engines.loading.quantized_file import QUANTIZED_FILE
from engines.video.builder import require_video
from serving.cli.weights.models import model_rows, models_table
from serving.config import ServerConfig
from serving.errors import ModelError
from serving.weights.loader import open_model, require_model
from serving.weights.quantized_model import find_quantized, model_config, served_model
from tests.support.quantized import POCKET, POCKET_INT8, write_pocket

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    write_pocket(models / "pocket-int8")
    return models


def test_it_is_opened_by_its_name_and_by_its_folder(models: Path, tmp_path: Path) -> None:
    for name, among in (("pocket-int8", models), (str(models / "pocket-int8"), tmp_path)):
        opened = open_model(name, among, CPU, torch.float32)
        assert opened.model.config.transformer.quantization == POCKET_INT8
        assert opened.model.identity["quantization"] == str(POCKET_INT8)
        assert [origin.repo for origin in opened.origins] == [
            "longtake pocket",
            f"longtake quantize {POCKET_INT8}",
        ]
        assert opened.prompts.encode("a red balloon").rows.shape[1] == POCKET.transformer.text_dim


def test_a_server_keeps_the_folder_wherever_its_replicas_run(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    assert ServerConfig(model="./pocket-int8").model == str(models / "pocket-int8")
    assert ServerConfig(model="pocket").model == "pocket"


def test_a_known_name_is_never_a_folder(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(models / "pocket-int8", tmp_path / "pocket")
    monkeypatch.chdir(tmp_path)
    assert find_quantized("pocket", tmp_path) is None
    assert ServerConfig(model="pocket").model == "pocket"


def test_what_is_neither_known_nor_a_folder_is_refused(models: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'pocket-int4'.*nor is there quantized_transformer"):
        model_config("pocket-int4", models)


def test_a_server_may_say_by_which_steps_videos_are_restyled() -> None:
    steps = (850, 750, 500, 250)
    served, own = (served_model(ServerConfig(video_steps=asked)) for asked in (steps, ()))
    assert own == POCKET
    assert served.video == replace(require_video(own), steps=steps)
    with pytest.raises(ConfigError, match="tiny makes videos from prompts alone"):
        served_model(ServerConfig(model="tiny", video_steps=steps))


def test_nothing_can_be_merged_into_it(models: Path, tmp_path: Path) -> None:
    lora = LoRAFile(tmp_path / "style.safetensors")
    for ask in (
        lambda: require_model("pocket-int8", models, loras=[lora]),
        lambda: open_model("pocket-int8", models, CPU, torch.float32, loras=[lora]),
    ):
        with pytest.raises(
            WeightsError, match=r"style\.safetensors cannot be merged into pocket.*which is quantized"
        ):
            ask()


def test_one_made_of_a_model_that_is_not_here_says_so(tmp_path: Path) -> None:
    write_pocket(tmp_path / "big-int8", QuantizationConfig("int8"), base="longlive-1.3b")
    with pytest.raises(ModelError, match=r"longlive-1\.3b is not in .*run `longtake download longlive-1\.3b`"):
        require_model("big-int8", tmp_path)


def test_it_is_listed_with_its_recipe_and_license(models: Path) -> None:
    row = next(row for row in model_rows(models) if row.model == "pocket-int8")
    whole = next(row for row in model_rows(models) if row.model == "pocket")
    assert row.here == "yes"
    assert row.memory_bytes is not None
    assert whole.memory_bytes is not None
    assert row.memory_bytes < whole.memory_bytes
    assert row.summary == f"pocket in {POCKET_INT8}"
    assert "longtake quantize pocket: Apache-2.0" in "\n".join(models_table(model_rows(models)))


def test_a_damaged_one_is_listed_as_damaged(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "pocket-int8", tmp_path / "pocket-int8")
    (tmp_path / "pocket-int8" / QUANTIZED_FILE).write_bytes(b"nothing")
    row = model_rows(tmp_path)[-1]
    assert (row.model, row.here) == ("pocket-int8", "damaged")
    assert "damaged" in "\n".join(models_table([row]))
