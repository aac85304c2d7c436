"""A quantized layer in kernels, op by op, beside PyTorch's operators on the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from engines.config.quantization import QuantizationConfig
from engines.config.stream import StreamConfig
from engines.errors import ConfigError
from engines.loading.model import Model
from engines.quantization.calibration import calibrate
from engines.runner.fused import FusedRunner
from engines.runner.selection import select_runner
from engines.text.prompt import Prompt
from engines.wan.layer_ops import EAGER_OPS, Residual
from engines.wan.quantized_linear import QuantizedLinear
from engines.wan.quantized_ops import QuantizedOps
from engines.wan.transformer import CausalTransformer, TransformerBlock
from kernels.dispatch import EAGER, KernelBackends
from tests.engines.wan.test_layer_ops import CROSS, FFN, FRAMES, OWN, ROWS, SHAPE, TOKENS, ada_ln, randn, residuals
from tests.support.quantized import quantized, rolled_out

BACKENDS = [
    EAGER,
    replace(EAGER, layernorm_modulate="triton"),
    replace(EAGER, linear="triton"),
    replace(EAGER, layernorm_modulate="triton", linear="triton"),
]
RECIPES = [
    QuantizationConfig("int8", 0.5),
    QuantizationConfig("int8", 0.5, held_back=("blocks.1.self_attn.v", "blocks.1.ffn.0", "blocks.1.cross_attn.q")),
    QuantizationConfig("int8", held_back=("blocks.1.ffn.2", "blocks.1.self_attn.o")),
    QuantizationConfig("fp8", 0.5),
]
RUNS = [*((RECIPES[0], kernels) for kernels in BACKENDS), *((recipe, BACKENDS[-1]) for recipe in RECIPES[1:])]

BOUND = 4e-3
"""Beside the root mean square: a value at half a step goes either way, where sums are of another order."""


@pytest.fixture(scope="module")
def models(model: Model, prompts: list[Prompt]) -> dict[QuantizationConfig, Model]:
    network = model.transformer
    with torch.no_grad():
        for block in network.blocks:
            nn.init.normal_(cast(TransformerBlock, block).norm3.weight)
    statistics = calibrate(model, prompts[:1], StreamConfig(height=32, width=48), 2)
    return {recipe: quantized(model, recipe, statistics) for recipe in RECIPES}


@pytest.fixture(params=RUNS, ids=lambda run: f"{run[0]}; {run[1]}")
def run(request: pytest.FixtureRequest) -> tuple[QuantizationConfig, KernelBackends]:
    asked: tuple[QuantizationConfig, KernelBackends] = request.param
    return asked


@pytest.fixture
def fused(run: tuple[QuantizationConfig, KernelBackends], models: dict[QuantizationConfig, Model]) -> QuantizedOps:
    return QuantizedOps(models[run[0]].transformer, run[1])


@pytest.fixture
def block(
    run: tuple[QuantizationConfig, KernelBackends], models: dict[QuantizationConfig, Model]
) -> TransformerBlock:
    return cast(TransformerBlock, models[run[0]].transformer.blocks[1])


def close(ours: Tensor | None, wanted: Tensor | None) -> None:
    assert ours is not None
    assert wanted is not None
    assert ours.shape == wanted.shape
    assert (ours - wanted).square().mean().sqrt() <= BOUND * wanted.square().mean().sqrt()


@pytest.mark.parametrize("kind", ["first", "whole", "gated"])
def test_projections_of_the_sum_normed(fused: QuantizedOps, block: TransformerBlock, kind: str) -> None:
    own, dim = block.self_attn, block.norm3.normalized_shape[0]
    norm, residual = ada_ln(dim), residuals(dim)[kind]
    (x, wanted), (fused_x, made) = (ops.modulated_qkv(OWN, own, residual, norm) for ops in (EAGER_OPS, fused))
    torch.testing.assert_close(fused_x, x)
    made_kv = fused.modulated_kv(OWN, own, residual, norm)
    for ours, theirs in zip((*made, *made_kv), (*wanted, *wanted[1:]), strict=True):
        close(ours, theirs)


def test_what_was_attended_is_projected(fused: QuantizedOps, block: TransformerBlock) -> None:
    own, cross, dim = block.self_attn, block.cross_attn, block.norm3.normalized_shape[0]
    x, gate = randn(*SHAPE, dim), randn(ROWS, FRAMES, 1, dim, seed=5)
    attended = randn(ROWS, FRAMES * TOKENS, own.heads, dim // own.heads, seed=7)
    close(
        fused.attention_out(OWN, own, x, attended, gate).branch,
        EAGER_OPS.attention_out(OWN, own, x, attended, gate).branch,
    )
    close(fused.cross_out(CROSS, cross, x, attended).branch, EAGER_OPS.cross_out(CROSS, cross, x, attended).branch)


@pytest.mark.parametrize("kind", ["first", "whole", "gated"])
def test_queries_for_the_prompt(fused: QuantizedOps, block: TransformerBlock, kind: str) -> None:
    residual = residuals(block.norm3.normalized_shape[0])[kind]
    (x, wanted), (fused_x, made) = (
        ops.cross_query(CROSS, block.cross_attn, residual, block.norm3) for ops in (EAGER_OPS, fused)
    )
    torch.testing.assert_close(fused_x, x)
    close(made, wanted)


def test_the_feed_forward_net(fused: QuantizedOps, block: TransformerBlock) -> None:
    dim = block.norm3.normalized_shape[0]
    norm, gate, residual = ada_ln(dim), randn(ROWS, FRAMES, 1, dim, seed=5), residuals(dim)["whole"]
    made, wanted = (ops.mlp(FFN, block.ffn, residual, norm, gate) for ops in (fused, EAGER_OPS))
    torch.testing.assert_close(made.x, wanted.x)
    close(made.branch, wanted.branch)


def test_the_smoothing_of_the_second_half_is_applied_once(models: dict[QuantizationConfig, Model]) -> None:
    """With factors far from one, a result that has them twice or never is far from the right one."""
    transformer = models[RECIPES[0]].transformer
    block = cast(TransformerBlock, transformer.blocks[1])
    down = block.ffn[2]
    assert isinstance(down, QuantizedLinear)
    assert down.input_factor is not None
    dim, before = block.norm3.normalized_shape[0], down.input_factor.clone()
    try:
        down.input_factor *= torch.logspace(-2, 2, len(before))
        residual: Residual = residuals(dim)["whole"]
        gate = randn(ROWS, FRAMES, 1, dim, seed=5)
        wanted = EAGER_OPS.mlp(FFN, block.ffn, residual, ada_ln(dim), gate)
        for backends in BACKENDS:
            made = QuantizedOps(transformer, backends).mlp(FFN, block.ffn, residual, ada_ln(dim), gate)
            close(made.branch, wanted.branch)
    finally:
        down.input_factor.copy_(before)


def test_a_stream_in_kernels_is_that_of_the_eager_runner(
    models: dict[QuantizationConfig, Model], prompts: list[Prompt]
) -> None:
    stream = StreamConfig(height=16, width=32)
    model = models[RECIPES[0]]
    wanted = rolled_out(model, stream, prompts[:1], 2)
    kernels = KernelBackends(layernorm_modulate="triton", linear="triton", qk_norm_rope="triton")
    assert isinstance(select_runner(model.transformer, kernels, graphs=False), FusedRunner)
    made = rolled_out(model, stream, prompts[:1], 2, kernels)
    assert (made - wanted).norm() < 0.02 * wanted.norm()


def test_a_runner_is_refused_on_chips_that_are_not_made_for_the_format(
    models: dict[QuantizationConfig, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalTransformer, "device", torch.device("cuda", 0))
    monkeypatch.setattr(CausalTransformer, "dtype", torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 3))
    with pytest.raises(ConfigError, match=r"sm_103 multiplies INT8.*`longtake quantize --to fp8` made"):
        select_runner(models[RECIPES[0]].transformer, EAGER, graphs=False)
    select_runner(models[RECIPES[3]].transformer, EAGER, graphs=False)
