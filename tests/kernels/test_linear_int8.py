from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import linear_int8 as op
from kernels import matmul
from kernels.eight_bits import (
    linear_int8_gelu_library,
    linear_int8_library,
    scaled_linear_gelu_reference,
    scaled_linear_reference,
)
from kernels.linear_int8 import linear_int8, linear_int8_gelu
from kernels.quantize import quantize_rows
from kernels.tiles import INTERPRETER, interpreted
from tests.tolerances import assert_within

SHAPES = [(1, 48, 72), (37, 96, 136), (70, 1040, 80)]
"""Tokens, channels in and channels out, none a multiple of the interpreter's tile."""

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=["pointers", "descriptors"])
def _addressing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to address tensors, where Triton interprets; a chip has its own."""
    if not interpreted() and request.param == "descriptors":
        pytest.skip("a chip's way is in its table")
    if request.param == "descriptors":
        monkeypatch.setattr(matmul, "BY_DESCRIPTOR", frozenset({INTERPRETER}))


class Layer(NamedTuple):
    """Rounded inputs [1, tokens, inner] and a linear layer's rounded weight, with its scales and bias."""

    x: Tensor
    x_scales: Tensor
    weight: Tensor
    weight_scales: Tensor
    bias: Tensor


def layer(tokens: int, inner: int, outer: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Layer:
    generator = torch.Generator().manual_seed(9)
    x = quantize_rows(torch.randn(1, tokens, inner, generator=generator))
    weight = quantize_rows(torch.randn(outer, inner, generator=generator) / inner**0.5)
    bias = torch.randn(outer, generator=generator).to(dtype)
    return Layer(*(t.to(device) for t in (*x, *weight, bias)))


def factor(outer: int, device: torch.device) -> Tensor:
    return torch.rand(outer, generator=torch.Generator().manual_seed(5)).to(device) + 0.5


def in_fp32(given: Layer) -> Layer:
    """With a bias that has the output in fp32."""
    return given._replace(bias=given.bias.float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reference_is_a_linear_layer_of_what_was_rounded(dtype: torch.dtype) -> None:
    given = layer(37, 96, 136, torch.device("cpu"), dtype)
    x = given.x.double() * given.x_scales.unsqueeze(-1)
    weight = given.weight.double() * given.weight_scales.unsqueeze(-1)
    exact = F.linear(x, weight, given.bias.double())
    vector = factor(136, torch.device("cpu"))
    assert_within("linear_int8", scaled_linear_reference(*given), exact)
    activated = F.gelu(exact, approximate="tanh")
    assert_within("linear_int8", scaled_linear_gelu_reference(*given, None), activated)
    assert_within("linear_int8", scaled_linear_gelu_reference(*given, vector), activated * vector)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "inner", "outer"), [*SHAPES, (2, 41, 7)])
def test_the_library_is_the_reference_to_the_bit(tokens: int, inner: int, outer: int, dtype: torch.dtype) -> None:
    given, vector = layer(tokens, inner, outer, torch.device("cpu"), dtype), factor(outer, torch.device("cpu"))
    assert torch.equal(linear_int8_library(*given), scaled_linear_reference(*given))
    assert torch.equal(linear_int8_gelu_library(*given, vector), scaled_linear_gelu_reference(*given, vector))


@pytest.mark.usefixtures("_addressing")
@pytest.mark.parametrize(("tokens", "inner", "outer"), SHAPES)
def test_sums_are_exact(tokens: int, inner: int, outer: int, device: torch.device) -> None:
    given = layer(tokens, inner, outer, device)
    sums = given.x.double() @ given.weight.double().t()
    assert sums.abs().max() < 2**24, "or fp32 would round them"
    ones = torch.ones_like(given.x_scales), torch.ones_like(given.weight_scales), torch.zeros_like(given.bias)
    made = linear_int8(given.x, ones[0], given.weight, ones[1], ones[2])
    assert torch.equal(made.double(), sums)


@pytest.mark.parametrize("value", [127, -127], ids=str)
def test_the_largest_sums_of_the_real_model_are_exact(value: int, device: torch.device) -> None:
    x = torch.full((1, 2, 8960), 127, dtype=torch.int8, device=device)
    weight = torch.full((16, 8960), value, dtype=torch.int8, device=device)
    ones = torch.ones(1, 2, device=device), torch.ones(16, device=device), torch.zeros(16, device=device)
    made = linear_int8(x, ones[0], weight, ones[1], ones[2])
    assert torch.equal(made, torch.full_like(made, float(8960 * 127 * value)))


@pytest.mark.usefixtures("_addressing")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "inner", "outer"), SHAPES)
def test_sums_are_scaled_and_biased(
    tokens: int, inner: int, outer: int, dtype: torch.dtype, device: torch.device
) -> None:
    given = layer(tokens, inner, outer, device, dtype)
    assert linear_int8(*given).dtype == dtype
    assert_within("linear_int8", linear_int8(*given), scaled_linear_reference(*in_fp32(given)))


@pytest.mark.usefixtures("_addressing")
@pytest.mark.parametrize("factored", [True, False], ids=["factor", "no factor"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_go_through_gelu_and_the_factor(factored: bool, dtype: torch.dtype, device: torch.device) -> None:
    given, vector = layer(37, 96, 136, device, dtype), factor(136, device) if factored else None
    assert_within(
        "linear_int8", linear_int8_gelu(*given, vector), scaled_linear_gelu_reference(*in_fp32(given), vector)
    )


@pytest.mark.usefixtures("_addressing")
def test_more_tiles_than_programs_are_all_made(device: torch.device) -> None:
    given = layer(290, 48, 136, device)
    assert_within("linear_int8", linear_int8(*given), scaled_linear_reference(*given))


def test_odd_channels_are_multiplied_through_pointers(device: torch.device) -> None:
    given = layer(3, 41, 7, device)
    assert_within("linear_int8", linear_int8(*given), scaled_linear_reference(*given))


def test_a_factor_in_16_bits_serves_as_well(device: torch.device) -> None:
    given, vector = layer(5, 96, 136, device, torch.bfloat16), factor(136, device).bfloat16()
    assert_within(
        "linear_int8", linear_int8_gelu(*given, vector), scaled_linear_gelu_reference(*in_fp32(given), vector)
    )


def test_gelu_is_exact_far_from_zero(device: torch.device) -> None:
    given = layer(1, 16, 16, device)
    bias = torch.linspace(-40.0, 40.0, 16, device=device)
    given = given._replace(x=torch.zeros_like(given.x), bias=bias)
    exact = F.gelu(bias.double(), approximate="tanh").view(1, 1, 16)
    for made in (linear_int8_gelu(*given, None), scaled_linear_gelu_reference(*given, None)):
        torch.testing.assert_close(made.double(), exact, atol=1e-6, rtol=1e-5)


IMPLEMENTATIONS = [scaled_linear_gelu_reference, linear_int8_gelu_library, linear_int8_gelu]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["reference", "library", "triton"])
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(
    implementation: Callable[..., Tensor], device: torch.device
) -> None:
    given, vector = layer(37, 96, 136, device), factor(136, device)
    together = implementation(*given, vector)
    for tokens in (slice(0, 1), slice(3, 8), slice(36, 37)):
        x, x_scales = given.x[:, tokens].contiguous(), given.x_scales[:, tokens].contiguous()
        assert torch.equal(implementation(x, x_scales, *given[2:], vector), together[:, tokens])


def test_a_row_has_the_same_bits_on_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    given, vector = layer(300, 32, 136, torch.device("cpu")), factor(136, torch.device("cpu"))
    made = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            made.append(linear_int8_gelu_library(*given, vector))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_rows_may_lie_in_any_number_of_dimensions(device: torch.device) -> None:
    given = layer(6, 96, 136, device)
    split = given._replace(x=given.x.view(2, 3, 1, 96), x_scales=given.x_scales.view(2, 3, 1))
    for op_of in (linear_int8, linear_int8_library, scaled_linear_reference):
        assert torch.equal(op_of(*split), op_of(*given).view(2, 3, 1, 136))


def on_meta(given: Layer) -> Layer:
    """Meta stands for CUDA."""
    return Layer(*(t.to("meta") for t in given))


def test_the_library_pads_few_rows_beside_a_cpu() -> None:
    assert linear_int8_library(*on_meta(layer(3, 40, 72, torch.device("cpu")))).shape == (1, 3, 72)


@pytest.mark.parametrize(("inner", "outer"), [(41, 72), (40, 73)], ids=str)
def test_channels_that_the_library_cannot_take_on_cuda_are_refused(inner: int, outer: int) -> None:
    complaint = rf"linear_int8: .* multiples of 8 channels on CUDA; got {inner} in and {outer} out"
    with pytest.raises(ValueError, match=complaint):
        linear_int8_library(*on_meta(layer(32, inner, outer, torch.device("cpu"))))


@pytest.mark.skipif(not interpreted(), reason="chosen for the interpreter here, and by a chip's table there")
def test_rows_that_tma_cannot_address_are_refused(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(matmul, "BY_DESCRIPTOR", frozenset({INTERPRETER}))
    with pytest.raises(ValueError, match=r"TMA needs rows of a multiple of 16 bytes .* got 40 channels"):
        linear_int8(*layer(3, 40, 72, device))


@pytest.mark.skipif(not interpreted(), reason="another chip is pretended")
def test_sm_100_is_refused_and_fp8_named(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(op, "architecture", lambda device: 100)
    complaint = "linear_int8 has no tile for sm_100; known are sm_80, .*INT8 is not for sm_100, FP8 is"
    with pytest.raises(ValueError, match=complaint):
        linear_int8(*layer(3, 48, 72, device))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"x": torch.zeros(1, 3, 40)}, r"x must be .* of torch\.int8; got \[1, 3, 40\] torch\.float32"),
        ({"x": torch.zeros(1, 0, 40, dtype=torch.int8)}, r"x is empty: \[1, 0, 40\]"),
        ({"x_scales": torch.ones(1, 2)}, r"x_scales must be contiguous \[1, 3\] .* got \[1, 2\]"),
        (
            {"x_scales": torch.ones(1, 3).half()},
            r"x_scales must .* torch\.float32; got \[1, 3\] torch\.float16",
        ),
        ({"weight": torch.zeros(40, 72, dtype=torch.int8).t()}, r"weight must be .* with strides \[1, 72\]"),
        ({"weight": torch.zeros(72, 39, dtype=torch.int8)}, r"weight must be contiguous \[72, 40\]"),
        ({"weight_scales": torch.ones(72, 1)}, r"weight_scales must be contiguous \[72\] .* got \[72, 1\]"),
        ({"bias": torch.ones(71)}, r"bias must be contiguous \[72\]"),
        ({"bias": torch.ones(72).double()}, r"bias must be .* got \[72\] torch\.float64"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changes: dict[str, Tensor], complaint: str, device: torch.device) -> None:
    given = layer(3, 40, 72, device)._replace(**{name: t.to(device) for name, t in changes.items()})
    with pytest.raises(ValueError, match=f"linear_int8: {complaint}"):
        linear_int8(*given)


def test_a_factor_of_other_channels_is_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"linear_int8_gelu: factor must be contiguous \[72\] .* got \[71\]"):
        linear_int8_gelu(*layer(3, 40, 72, device), factor(71, device))
