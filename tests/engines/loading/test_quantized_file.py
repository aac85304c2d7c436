"""A quantized transformer written and read, and what is wrong with a file said by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engines.config.presets import preset
from engines.config.quantization import QuantizationConfig
from engines.errors import ConfigError, WeightsError
from engines.loading.footprint import parameter_bytes
from engines.loading.model import Model
from engines.loading.quantized_file import (
    ENTRY,
    QUANTIZED_FILE,
    QuantizedHeader,
    load_quantized,
    write_quantized,
)
from engines.wan.transformer import CausalTransformer
from tests.support.quantized import quantized_config, quantized_state

RECIPE = QuantizationConfig("int8", held_back=("blocks.2.ffn.2",))
CONFIG = quantized_config(preset("tiny-taehv"), RECIPE).transformer
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantized") / QUANTIZED_FILE
    header = QuantizedHeader("tiny-taehv", RECIPE, "source", (), "", "Apache-2.0", "0.1")
    write_quantized(path, quantized_state(model.transformer, RECIPE), header, torch.float32)
    return path


def test_what_is_written_is_read_bit_by_bit(written: Path, model: Model) -> None:
    loaded = load_quantized(CONFIG, written, "cpu", torch.float32).state_dict()
    wanted = quantized_state(model.transformer, RECIPE)
    assert loaded.keys() == wanted.keys()
    assert all(loaded[name].dtype == x.dtype and torch.equal(loaded[name], x) for name, x in wanted.items())


def test_in_bf16_scales_stay_in_fp32(written: Path) -> None:
    loaded = load_quantized(CONFIG, written, "cpu", torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in loaded.state_dict().items()}
    assert dtypes["blocks.0.ffn.0.weight"] == torch.int8
    assert dtypes["blocks.0.ffn.0.weight_scale"] == torch.float32
    assert dtypes["blocks.0.ffn.0.bias"] == dtypes["blocks.2.ffn.2.weight"] == torch.bfloat16
    assert loaded.dtype == torch.bfloat16


def test_the_header_says_what_the_file_was_made_of(written: Path) -> None:
    header = QuantizedHeader.read(written)
    assert (header.model, header.recipe, header.licence) == ("tiny-taehv", RECIPE, "Apache-2.0")
    assert len(header.tensors) == 64


def changed(written: Path, path: Path, change: Callable[[State], None], **header: object) -> Path:
    """A copy with other tensors, and a header that believes in them."""
    with safe_open(written, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(state)
    believed = replace(QuantizedHeader.read(written), **header)  # type: ignore[arg-type]
    write_quantized(path, state, believed, torch.float32)
    return path


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_scale_is_named(written: Path, tmp_path: Path, value: float) -> None:
    def spoil(state: State) -> None:
        state["blocks.1.self_attn.k.weight_scale"][3] = value

    path = changed(written, tmp_path / QUANTIZED_FILE, spoil)
    with pytest.raises(WeightsError, match=r"blocks\.1\.self_attn\.k\.weight_scale has values that are 0"):
        load_quantized(CONFIG, path, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop("blocks.0.ffn.0.weight_scale"), r"1 missing \(blocks\.0\.ffn\.0\.weight_scale\)"),
        (
            lambda state: state.update({"blocks.0.ffn.0.weight": state["blocks.0.ffn.0.weight"].float()}),
            r"blocks\.0\.ffn\.0\.weight is torch\.float32, not torch\.int8",
        ),
        (
            lambda state: state.update({"head.head.weight": state["head.head.weight"].to(torch.int8)}),
            r"1 not floating point \(head\.head\.weight is torch\.int8\)",
        ),
        (lambda state: state.update({"blocks.9.x": torch.ones(1)}), r"1 left over \(blocks\.9\.x\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    written: Path, tmp_path: Path, change: Callable[[State], None], complaint: str
) -> None:
    path = changed(written, tmp_path / QUANTIZED_FILE, change)
    with pytest.raises(WeightsError, match=complaint):
        load_quantized(CONFIG, path, "cpu", torch.float32)


def test_a_file_of_another_recipe_is_refused(written: Path) -> None:
    other = replace(CONFIG, quantization=QuantizationConfig("int8"))
    with pytest.raises(WeightsError, match=r"quantized as int8.*held back: blocks\.2\.ffn\.2, and int8"):
        load_quantized(other, written, "cpu", torch.float32)


def test_a_file_of_another_model_is_refused(written: Path) -> None:
    other = quantized_config(preset("pocket"), RECIPE).transformer
    with pytest.raises(WeightsError, match="does not fit CausalTransformer"):
        load_quantized(other, written, "cpu", torch.float32)


def test_bits_that_have_flipped_are_found(written: Path, tmp_path: Path) -> None:
    data = bytearray(written.read_bytes())
    data[-5] ^= 4
    path = tmp_path / QUANTIZED_FILE
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="is damaged: its tensors are not those that were written"):
        load_quantized(CONFIG, path, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "is damaged or cut short: .*; quantize again"),
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: save_file({"x": torch.ones(1)}, path), "is no quantized transformer"),
    ],
)
def test_what_is_no_whole_file_is_refused(
    written: Path, tmp_path: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    path = tmp_path / QUANTIZED_FILE
    path.write_bytes(written.read_bytes())
    spoil(path)
    with pytest.raises(WeightsError, match=complaint):
        QuantizedHeader.read(path)


@pytest.mark.parametrize("header", ["{", "null", "[]", '"text"', "7", "{}"])
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / QUANTIZED_FILE
    save_file({"x": torch.ones(1)}, path, {ENTRY: header})
    with pytest.raises(WeightsError, match=r"header of .* is damaged: .*; quantize again"):
        QuantizedHeader.read(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"recipe": None}, {"recipe": "int8"}, {"recipe": {"weights": "int8"}}, {"model": 7}, {"licence": None},
        {"loras": None}, {"loras": [0.5]}, {"more": "of it"},
        {"recipe": {"weights": "int8", "smoothing": "much", "rounding": "nearest", "held_back": []}},
        {"recipe": {"weights": "int8", "smoothing": 0.5, "rounding": "nearest", "held_back": [5]}},
    ],
    ids=str,
)  # fmt: skip
def test_a_header_with_an_entry_that_cannot_be_is_refused(
    written: Path, tmp_path: Path, entry: dict[str, object]
) -> None:
    with safe_open(written, "pt") as file:
        header = json.loads(file.metadata()[ENTRY])
    path = tmp_path / QUANTIZED_FILE
    save_file({"x": torch.ones(1)}, path, {ENTRY: json.dumps(header | entry)})
    with pytest.raises(WeightsError, match=r"header of .* is damaged: .*; quantize again"):
        QuantizedHeader.read(path)


def test_a_file_of_another_version_says_so(tmp_path: Path) -> None:
    path = tmp_path / QUANTIZED_FILE
    save_file({"x": torch.ones(1)}, path, {ENTRY: '{"version": 2}'})
    with pytest.raises(WeightsError, match="is of version 2, and this Longtake reads 1; quantize again"):
        QuantizedHeader.read(path)


def test_the_published_size_in_int8_stays_below_1_6_gb() -> None:
    recipe = QuantizationConfig("int8", 0.5, "compensated")
    counted = parameter_bytes(quantized_config(preset("longlive-1.3b"), recipe), torch.bfloat16)
    assert 1.5e9 < counted.transformer <= 1.6e9
    with torch.device("meta"):
        transformer = CausalTransformer(quantized_config(preset("longlive-1.3b"), recipe).transformer)
    assert counted.transformer == sum(
        x.numel() * (2 if isinstance(x, torch.nn.Parameter) else x.itemsize)
        for x in (*transformer.parameters(), *transformer.buffers())
    )


def test_a_recipe_names_layers_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"head\.head cannot be held back"):
        QuantizationConfig("int8", held_back=("head.head",))
    with pytest.raises(ConfigError, match="weights in 'int4' are not known; they can be int8, fp8"):
        QuantizationConfig("int4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="smoothing is 2"):
        QuantizationConfig("int8", 2)
