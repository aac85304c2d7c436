from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engines.wan.layer_ops import EAGER_OPS
from kernels import linear as op
from kernels.linear import (
    linear,
    linear_gelu,
    linear_gelu_reference,
    linear_reference,
    linear_residual,
    linear_residual_reference,
)
from kernels.tiles import INTERPRETER, interpreted
from tests.tolerances import assert_within

SHAPES = [(1, 1, 1, 40, 72), (2, 3, 7, 96, 136), (1, 2, 40, 64, 64)]
"""Streams, frames, tokens, K and N: less than a tile, parts of tiles, and whole ones but for the last rows."""


@pytest.fixture(params=["pointers", "descriptors"])
def _addressing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to address tensors, where Triton interprets; a chip has its own."""
    if not interpreted() and request.param == "descriptors":
        pytest.skip("a chip's way is in its table")
    if request.param == "descriptors":
        monkeypatch.setattr(op, "BY_DESCRIPTOR", frozenset({INTERPRETER}))


def layer(tokens: int, inner: int, outer: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [1, tokens, inner] and a linear layer's weight and bias."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(1, tokens, inner, generator=generator)
    weight = torch.randn(outer, inner, generator=generator) / inner**0.5
    return x.to(device), weight.to(device), torch.randn(outer, generator=generator).to(device)


def stream(shape: tuple[int, int, int, int, int], device: torch.device) -> tuple[Tensor, ...]:
    """A branch's inputs [B, F * T, K], its layer, the rows it is added to, and a gate out of a table."""
    batch, frames, tokens, inner, outer = shape
    x, weight, bias = layer(batch * frames * tokens, inner, outer, device)
    generator = torch.Generator().manual_seed(10)
    residual = torch.randn(batch, frames, tokens, outer, generator=generator)
    table = torch.randn(batch, frames, 6, outer, generator=generator).to(device)
    gate = table.unsqueeze(2).unbind(3)[2]
    return x.view(batch, frames * tokens, inner), weight, bias, residual.to(device), gate


@torch.no_grad()
def test_the_references_are_the_transformers_projections() -> None:
    x, weight, bias, residual, gate = stream(SHAPES[1], torch.device("cpu"))
    made = torch.nn.Linear(96, 136)
    made.load_state_dict({"weight": weight, "bias": bias})
    assert torch.equal(linear_reference(x, weight, bias), EAGER_OPS.project(made, x))
    assert torch.equal(linear_gelu_reference(x, weight, bias), EAGER_OPS.project_gelu(made, x))
    for one in (gate, None):
        expected = EAGER_OPS.project_onto(residual, made, x, one)
        assert torch.equal(linear_residual_reference(x, weight, bias, residual, one), expected)


@pytest.mark.usefixtures("_addressing")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "inner", "outer"), [(1, 40, 72), (37, 96, 136), (64, 64, 64)])
def test_rows_are_multiplied_and_biased(
    tokens: int, inner: int, outer: int, dtype: torch.dtype, device: torch.device
) -> None:
    x, weight, bias = (t.to(dtype) for t in layer(tokens, inner, outer, device))
    assert_within("linear", linear(x, weight, bias), linear_reference(x.float(), weight.float(), bias.float()))


@pytest.mark.usefixtures("_addressing")
def test_more_tiles_than_programs_are_all_made(device: torch.device) -> None:
    x, weight, bias = layer(290, 40, 136, device)
    assert_within("linear", linear(x, weight, bias), linear_reference(x, weight, bias))


@pytest.mark.usefixtures("_addressing")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gated_branch_is_added_to_its_frames(
    shape: tuple[int, int, int, int, int], device: torch.device
) -> None:
    x, weight, bias, residual, gate = stream(shape, device)
    expected = linear_residual_reference(x, weight, bias, residual, gate)
    assert_within("linear", linear_residual(x, weight, bias, residual, gate), expected)


@pytest.mark.usefixtures("_addressing")
def test_a_branch_without_a_gate_is_added_whole(device: torch.device) -> None:
    x, weight, bias, residual, _ = stream(SHAPES[1], device)
    expected = linear_residual_reference(x, weight, bias, residual, None)
    assert_within("linear", linear_residual(x, weight, bias, residual, None), expected)


def test_one_gate_may_serve_all_frames(device: torch.device) -> None:
    x, weight, bias, residual, gate = stream(SHAPES[1], device)
    gate = gate[:, :1].expand_as(gate)
    expected = linear_residual_reference(x, weight, bias, residual, gate)
    assert_within("linear", linear_residual(x, weight, bias, residual, gate), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_go_through_gelu(dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias = (t.to(dtype) for t in layer(37, 96, 136, device))
    reference = linear_gelu_reference(x.float(), weight.float(), bias.float())
    assert_within("linear", linear_gelu(x, weight, bias), reference)


def test_gelu_is_exact_far_from_zero(device: torch.device) -> None:
    x, weight = torch.zeros(1, 1, 16, device=device), torch.zeros(16, 16, device=device)
    bias = torch.linspace(-40.0, 40.0, 16, device=device)
    exact = linear_gelu_reference(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(linear_gelu(x, weight, bias).double(), exact, atol=1e-9, rtol=1e-5)


@pytest.mark.skipif(not interpreted(), reason="chosen for the interpreter here, and by a chip's table there")
def test_rows_that_tma_cannot_address_are_refused(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(op, "BY_DESCRIPTOR", frozenset({INTERPRETER}))
    with pytest.raises(ValueError, match=r"TMA needs rows of a multiple of 16 bytes .* got 41 channels"):
        linear(*layer(3, 41, 8, device))


def test_a_weight_for_other_rows_is_refused(device: torch.device) -> None:
    x, weight, bias = layer(3, 40, 72, device)
    with pytest.raises(ValueError, match=r"weight must be contiguous \[N, 40\]; got \[72, 39\]"):
        linear(x, weight[:, :39].contiguous(), bias)


def test_a_bias_of_another_dtype_is_refused(device: torch.device) -> None:
    x, weight, bias = layer(3, 40, 72, device)
    with pytest.raises(ValueError, match=r"linear_gelu: bias is torch\.float16 .* x torch\.float32"):
        linear_gelu(x, weight, bias.half())


def test_a_residual_of_other_rows_is_refused(device: torch.device) -> None:
    x, weight, bias, residual, gate = stream(SHAPES[1], device)
    with pytest.raises(ValueError, match=r"residual \[2, 2, 7, 136\] .* does not fit products \[2, 21, 136\]"):
        linear_residual(x, weight, bias, residual[:, :2].contiguous(), gate[:, :2])
