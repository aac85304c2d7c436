"""What a layer computes besides attention: in PyTorch's operators and in kernels, op by op."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.config.presets import preset
from engines.wan.fused_ops import FusedOps
from engines.wan.layer_ops import EAGER_OPS, AdaLN, Residual
from engines.wan.transformer import CausalTransformer, TransformerBlock
from kernels.dispatch import EAGER, KernelBackends

BACKENDS = [
    replace(EAGER, layernorm_modulate="triton"),
    replace(EAGER, layernorm_modulate="triton", linear="triton"),
    EAGER,
]
ATOL = 2e-6
"""For values of a few units: kernels and products of other shapes sum in another order."""

SHAPE = ROWS, FRAMES, TOKENS = 2, 3, 5
OWN, CROSS, FFN = "blocks.1.self_attn", "blocks.1.cross_attn", "blocks.1.ffn"


@pytest.fixture(scope="module")
def transformer() -> CausalTransformer:
    """With norms whose weights are not one."""
    torch.manual_seed(2)
    network = CausalTransformer(replace(preset("tiny").transformer, layers=2)).eval().requires_grad_(False)
    for block in network.blocks:
        nn.init.normal_(cast(TransformerBlock, block).norm3.weight)
        nn.init.normal_(cast(TransformerBlock, block).norm3.bias)
    return network


@pytest.fixture
def block(transformer: CausalTransformer) -> TransformerBlock:
    return cast(TransformerBlock, transformer.blocks[1])


@pytest.fixture(params=BACKENDS, ids=str)
def fused(request: pytest.FixtureRequest, transformer: CausalTransformer) -> FusedOps:
    backends: KernelBackends = request.param
    return FusedOps(transformer, backends)


def randn(*shape: int, seed: int = 4) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def residuals(dim: int) -> dict[str, Residual]:
    """As a layer may get them: the first, one behind a cross attention, and others."""
    x, branch = randn(2, *SHAPE, dim)
    gate = randn(ROWS, FRAMES, 1, dim, seed=5)
    return {"first": Residual(x), "whole": Residual(x, branch), "gated": Residual(x, branch, gate)}


def ada_ln(dim: int) -> AdaLN:
    """One modulation for all frames of a row, out of a table."""
    table = randn(ROWS, 1, 6, dim, seed=6).expand(-1, FRAMES, -1, -1)
    shift, factor, *_ = table.unsqueeze(2).unbind(3)
    assert shift.stride(1) == 0
    return AdaLN(shift, factor, 1e-6)


def added(residual: Residual) -> Tensor:
    """The residual with its branch."""
    if residual.branch is None:
        return residual.x
    return residual.x + residual.branch * (1 if residual.gate is None else residual.gate)


def close(ours: Tensor | None, wanted: Tensor | None) -> None:
    torch.testing.assert_close(ours, wanted, atol=ATOL, rtol=ATOL)


@pytest.mark.parametrize("kind", ["first", "whole", "gated"])
def test_a_layer_begins_with_the_sum_normed_and_projected(
    fused: FusedOps, block: TransformerBlock, kind: str
) -> None:
    own, dim = block.self_attn, block.norm3.normalized_shape[0]
    norm, residual = ada_ln(dim), residuals(dim)[kind]
    x, qkv = EAGER_OPS.modulated_qkv(OWN, own, residual, norm)
    assert torch.equal(x, added(residual))
    normed = (F.layer_norm(x, (dim,), eps=norm.eps) * norm.factor + norm.shift).flatten(1, 2)
    assert all(torch.equal(p, f(normed)) for p, f in zip(qkv, (own.q, own.k, own.v), strict=True))
    fused_x, fused_qkv = fused.modulated_qkv(OWN, own, residual, norm)
    close(fused_x, x)
    for ours, wanted in zip(fused_qkv, qkv, strict=True):
        close(ours, wanted)
        assert ours.stride() == (FRAMES * TOKENS * 3 * dim, 3 * dim, 1)
    for ours, wanted in zip(fused.modulated_kv(OWN, own, residual, norm), qkv[1:], strict=True):
        close(ours, wanted)
        assert ours.stride() == (FRAMES * TOKENS * 2 * dim, 2 * dim, 1)
    for ours, wanted in zip(EAGER_OPS.modulated_kv(OWN, own, residual, norm), qkv[1:], strict=True):
        assert torch.equal(ours, wanted)


def test_what_was_attended_is_a_branch_not_yet_added(fused: FusedOps, block: TransformerBlock) -> None:
    own, cross, dim = block.self_attn, block.cross_attn, block.norm3.normalized_shape[0]
    x, gate = randn(*SHAPE, dim), randn(ROWS, FRAMES, 1, dim, seed=5)
    attended = randn(ROWS, FRAMES * TOKENS, own.heads, dim // own.heads, seed=7)
    for ops in (EAGER_OPS, fused):
        made = ops.attention_out(OWN, own, x, attended, gate)
        without_gate = ops.cross_out(CROSS, cross, x, attended)
        assert made.x is without_gate.x is x
        assert made.gate is gate
        assert without_gate.gate is None
        close(made.branch, own.o(attended.flatten(2)).view(*SHAPE, dim))
        close(without_gate.branch, cross.o(attended.flatten(2)).view(*SHAPE, dim))


@pytest.mark.parametrize("kind", ["first", "whole", "gated"])
def test_queries_for_the_prompt_come_from_the_sum_normed_with_weights(
    fused: FusedOps, block: TransformerBlock, kind: str
) -> None:
    residual = residuals(block.norm3.normalized_shape[0])[kind]
    wanted = added(residual), block.cross_attn.q(block.norm3(added(residual)).flatten(1, 2))
    for ops in (EAGER_OPS, fused):
        x, q = ops.cross_query(CROSS, block.cross_attn, residual, block.norm3)
        close(x, wanted[0])
        close(q, wanted[1])


def test_the_feed_forward_net_is_a_branch_not_yet_added(fused: FusedOps, block: TransformerBlock) -> None:
    dim = block.norm3.normalized_shape[0]
    norm, gate = ada_ln(dim), randn(ROWS, FRAMES, 1, dim, seed=5)
    residual = residuals(dim)["whole"]
    normed = F.layer_norm(added(residual), (dim,), eps=norm.eps) * norm.factor + norm.shift
    for ops in (EAGER_OPS, fused):
        made = ops.mlp(FFN, block.ffn, residual, norm, gate)
        close(made.x, added(residual))
        close(made.branch, block.ffn(normed))
        assert made.gate is gate


def test_the_head_projects_the_last_sum(fused: FusedOps, transformer: CausalTransformer) -> None:
    dim = transformer.config.dim
    norm, residual, linear = ada_ln(dim), residuals(dim)["gated"], transformer.head.head
    wanted = linear(F.layer_norm(added(residual), (dim,), eps=norm.eps) * norm.factor + norm.shift)
    for ops in (EAGER_OPS, fused):
        close(ops.head("head.head", linear, residual, norm), wanted)


def test_gradients_reach_every_weight_of_a_layer() -> None:
    torch.manual_seed(2)
    network = CausalTransformer(replace(preset("tiny").transformer, layers=1))
    block, dim = cast(TransformerBlock, network.blocks[0]), network.config.dim
    gate = randn(ROWS, FRAMES, 1, dim, seed=5)
    x, qkv = EAGER_OPS.modulated_qkv(OWN, block.self_attn, Residual(randn(*SHAPE, dim)), ada_ln(dim))
    attended = block.self_attn.heads_of(sum(qkv, torch.zeros(())))
    residual = EAGER_OPS.attention_out(OWN, block.self_attn, x, attended, gate)
    x, q = EAGER_OPS.cross_query(CROSS, block.cross_attn, residual, block.norm3)
    residual = EAGER_OPS.cross_out(CROSS, block.cross_attn, x, block.cross_attn.heads_of(q))
    residual = EAGER_OPS.mlp(FFN, block.ffn, residual, ada_ln(dim), gate)
    EAGER_OPS.head("head.head", network.head.head, residual, ada_ln(dim)).square().sum().backward()
    without = {name for name, parameter in block.named_parameters() if parameter.grad is None}
    norms = {f"{name}.{norm}.weight" for name in ("self_attn", "cross_attn") for norm in ("norm_q", "norm_k")}
    prompts = {f"cross_attn.{part}.{kind}" for part in "kv" for kind in ("weight", "bias")}
    assert without == {"modulation"} | norms | prompts
