"""A text encoder whose weights are kept in INT8: about the same embeddings of half the bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engines.config.presets import preset
from engines.errors import WeightsError
from engines.loading.footprint import parameter_bytes
from engines.loading.loader import load_text_encoder
from engines.pocket.model_files import model_files

CONFIG = preset("pocket").text_encoder
INT8 = replace(CONFIG, int8_weights=True)
PATH = model_files().text_encoder


@torch.inference_mode()
def test_embeddings_are_about_the_same() -> None:
    ids = torch.randint(3, CONFIG.vocab, (2, 20), generator=torch.Generator().manual_seed(1))
    encoders = (load_text_encoder(config, PATH, "cpu", torch.float32) for config in (CONFIG, INT8))
    plain, rounded = (encoder(ids, torch.ones_like(ids)) for encoder in encoders)
    assert 0 < (rounded - plain).norm() < 0.02 * plain.norm()


def test_weights_are_int8_and_all_else_is_as_asked() -> None:
    state = load_text_encoder(INT8, PATH, "cpu", torch.bfloat16).state_dict()
    assert state["blocks.0.attn.q.weight"].dtype == torch.int8
    assert state["blocks.0.attn.q.weight_scale"].dtype == torch.float32
    assert state["token_embedding.weight"].dtype == state["blocks.0.norm1.weight"].dtype == torch.bfloat16


def test_a_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path, state = tmp_path / "text.safetensors", load_file(PATH)
    save_file({name: x for name, x in state.items() if name != "blocks.0.ffn.fc1.weight"}, path)
    with pytest.raises(WeightsError, match=r"text\.safetensors does not fit UMT5Encoder: 1 missing .*ffn\.fc1"):
        load_text_encoder(INT8, path, "cpu", torch.float32)


def test_the_published_encoder_takes_less_than_seven_gigabytes() -> None:
    model = preset("longlive-1.3b")
    plain = parameter_bytes(model, torch.bfloat16).text_encoder
    int8 = parameter_bytes(
        replace(model, text_encoder=replace(model.text_encoder, int8_weights=True)), torch.bfloat16
    ).text_encoder
    assert plain / 1e9 == pytest.approx(11.36, abs=0.01)
    assert int8 / 1e9 == pytest.approx(6.73, abs=0.05)
