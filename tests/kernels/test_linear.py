from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.kernel_cases.launches import Launches
from kernels import matmul
from kernels.linear import (
    linear,
    linear_gelu,
    linear_gelu_library,
    linear_gelu_reference,
    linear_reference,
)
from kernels.tiles import INTERPRETER, interpreted
from tests.tolerances import assert_within


@pytest.fixture(params=["pointers", "descriptors"])
def _addressing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to address tensors, where Triton interprets; a chip has its own."""
    if not interpreted() and request.param == "descriptors":
        pytest.skip("a chip's way is in its table")
    if request.param == "descriptors":
        monkeypatch.setattr(matmul, "BY_DESCRIPTOR", frozenset({INTERPRETER}))


def layer(tokens: int, inner: int, outer: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [1, tokens, inner] and a linear layer's weight and bias."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(1, tokens, inner, generator=generator)
    weight = torch.randn(outer, inner, generator=generator) / inner**0.5
    return x.to(device), weight.to(device), torch.randn(outer, generator=generator).to(device)


@torch.no_grad()
def test_the_references_are_the_transformers_layers() -> None:
    x, weight, bias = layer(37, 96, 136, torch.device("cpu"))
    made = torch.nn.Linear(96, 136)
    made.load_state_dict({"weight": weight, "bias": bias})
    gelu = torch.nn.Sequential(made, torch.nn.GELU(approximate="tanh"))
    assert torch.equal(linear_reference(x, weight, bias), made(x))
    assert torch.equal(linear_gelu_reference(x, weight, bias), gelu(x))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_go_through_gelu(dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias = (t.to(dtype) for t in layer(37, 96, 136, device))
    reference = linear_gelu_reference(x.float(), weight.float(), bias.float())
    assert_within("linear", linear_gelu(x, weight, bias), reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_librarys_gelu_is_of_the_tanh_form(dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias = (t.to(dtype) for t in layer(37, 96, 136, device))
    made = linear_gelu_library(x, weight, bias)
    assert made.shape == (1, 37, 136)
    if device.type == "cuda" and dtype == torch.bfloat16:
        assert_within("linear", made, linear_gelu_reference(x.float(), weight.float(), bias.float()))
    else:
        assert torch.equal(made, linear_gelu_reference(x, weight, bias))


def test_the_librarys_gelu_is_one_kernel_in_bf16_beside_a_cpu() -> None:
    x, weight, bias = (t.to("meta", torch.bfloat16) for t in layer(37, 96, 136, torch.device("cpu")))
    with Launches() as launches:
        assert linear_gelu_library(x, weight, bias).shape == (1, 37, 136)
    assert launches.names == ["aten._addmm_activation"]


def test_gelu_is_exact_far_from_zero(device: torch.device) -> None:
    x, weight = torch.zeros(1, 1, 16, device=device), torch.zeros(16, 16, device=device)
    bias = torch.linspace(-40.0, 40.0, 16, device=device)
    exact = linear_gelu_reference(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(linear_gelu(x, weight, bias).double(), exact, atol=1e-9, rtol=1e-5)


@pytest.mark.skipif(not interpreted(), reason="chosen for the interpreter here, and by a chip's table there")
def test_rows_that_tma_cannot_address_are_refused(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(matmul, "BY_DESCRIPTOR", frozenset({INTERPRETER}))
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
