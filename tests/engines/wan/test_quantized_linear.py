"""A linear layer in 8 bits: what it computes, and that it stays in 8 bits wherever it is moved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engines.config.quantization import QuantizationConfig, WeightFormat
from engines.wan.quantized_linear import FORMATS, QuantizedLinear, project, quantize_layers

INPUTS, OUTPUTS = 48, 32


def filled(weights: WeightFormat, *, smoothed: bool = False, seed: int = 1) -> tuple[QuantizedLinear, nn.Linear]:
    """A layer in 8 bits, and what it stands for in fp32, its input's factor included."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(OUTPUTS, INPUTS, generator=generator), torch.randn(OUTPUTS, generator=generator)
    layer, plain = QuantizedLinear(INPUTS, OUTPUTS, weights, smoothed=smoothed), nn.Linear(INPUTS, OUTPUTS)
    rounded, scale = FORMATS[weights].quantize(weight)
    state = {"weight": rounded, "weight_scale": scale, "bias": bias}
    factor = torch.ones(INPUTS)
    if smoothed:
        factor = state["input_factor"] = torch.rand(INPUTS, generator=generator) + 0.5
    layer.load_state_dict(state)
    plain.load_state_dict({"weight": weight * factor, "bias": bias})
    return layer, plain


@pytest.mark.parametrize(("weights", "bound"), [("int8", 0.01), ("fp8", 0.05)])
@pytest.mark.parametrize("smoothed", [False, True])
@torch.no_grad()
def test_it_computes_about_what_it_stands_for(weights: WeightFormat, bound: float, smoothed: bool) -> None:
    layer, plain = filled(weights, smoothed=smoothed)
    x = torch.randn(2, 9, INPUTS)
    error = layer(x) - plain(x)
    assert error.norm() < bound * plain(x).norm()
    assert error.norm() > 0


@pytest.mark.parametrize("weights", ["int8", "fp8"])
@torch.no_grad()
def test_a_row_comes_out_the_same_whatever_rows_are_beside_it(weights: WeightFormat) -> None:
    layer, _ = filled(weights)
    rows = torch.randn(37, INPUTS)
    together = layer(rows)
    for row in (0, 5, 36):
        assert torch.equal(layer(rows[row : row + 1])[0], together[row])


@torch.no_grad()
def test_a_shared_input_is_rounded_once_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    (one, _), (two, _), plain = filled("int8"), filled("int8", seed=2), nn.Linear(INPUTS, OUTPUTS)
    rows, rounded = torch.randn(3, INPUTS), []

    def counted(x: Tensor) -> tuple[Tensor, Tensor]:
        rounded.append(x)
        return FORMATS["int8"].quantize(x)

    for layer in (one, two):
        layer.format = layer.format._replace(quantize=counted)
    made = project(rows, (one, plain, two))
    assert len(rounded) == 1
    assert all(torch.equal(x, layer(rows)) for x, layer in zip(made, (one, plain, two), strict=True))


@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_a_cast_changes_the_bias_alone(weights: WeightFormat) -> None:
    layer, _ = filled(weights, smoothed=True)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    network = nn.Sequential(layer).to(torch.bfloat16)
    assert layer.bias.dtype == torch.bfloat16
    for name, buffer in layer.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer.float(), before[name].float())
    assert network(torch.randn(2, INPUTS, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_only_the_layers_that_are_named_are_replaced() -> None:
    blocks = [nn.ModuleDict({"ffn": nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))}) for _ in range(2)]
    network = nn.ModuleDict({"blocks": nn.ModuleList(blocks), "head": nn.Linear(4, 4)})
    quantize_layers(network, QuantizationConfig("int8", 0.5, held_back=("blocks.1.ffn.0",)))
    quantized = {name: layer for name, layer in network.named_modules() if isinstance(layer, QuantizedLinear)}
    assert quantized.keys() == {"blocks.0.ffn.0", "blocks.0.ffn.2", "blocks.1.ffn.2"}
    assert quantized["blocks.0.ffn.2"].input_factor is not None
    assert quantized["blocks.0.ffn.0"].input_factor is None
