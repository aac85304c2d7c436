"""FP8 layers on a CPU, wherever the tests run, and what CUDA would refuse on meta."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernel_cases.launches import Launches
from kernels.eight_bits import quantize_rows_fp8, scaled_linear_gelu_reference, scaled_linear_reference
from kernels.linear_fp8 import linear_fp8, linear_fp8_gelu
from tests.tolerances import assert_within

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Layer(NamedTuple):
    """Rounded inputs [1, tokens, inner] and a linear layer's rounded weight, with its scales and bias."""

    x: Tensor
    x_scales: Tensor
    weight: Tensor
    weight_scales: Tensor
    bias: Tensor


def layer(tokens: int, inner: int, outer: int, dtype: torch.dtype, device: torch.device = CPU) -> Layer:
    generator = torch.Generator().manual_seed(9)
    x = quantize_rows_fp8(torch.randn(1, tokens, inner, generator=generator))
    weight = quantize_rows_fp8(torch.randn(outer, inner, generator=generator) / inner**0.5)
    bias = torch.randn(outer, generator=generator).to(dtype)
    return Layer(*(t.to(device) for t in (*x, *weight, bias)))


def factor(outer: int) -> Tensor:
    return torch.rand(outer, generator=torch.Generator().manual_seed(5)) + 0.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reference_is_a_linear_layer_of_what_was_rounded(dtype: torch.dtype) -> None:
    given, vector = layer(37, 96, 136, dtype), factor(136)
    x = given.x.double() * given.x_scales.unsqueeze(-1)
    weight = given.weight.double() * given.weight_scales.unsqueeze(-1)
    exact = F.linear(x, weight, given.bias.double())
    activated = F.gelu(exact, approximate="tanh")
    assert_within("linear", scaled_linear_reference(*given), exact)
    assert_within("linear", scaled_linear_gelu_reference(*given, None), activated)
    assert_within("linear", scaled_linear_gelu_reference(*given, vector), activated * vector)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "inner", "outer"), [(1, 40, 72), (37, 96, 136), (3, 41, 7), (70, 1040, 80)])
def test_rows_are_multiplied_scaled_and_biased(tokens: int, inner: int, outer: int, dtype: torch.dtype) -> None:
    given = layer(tokens, inner, outer, dtype)
    made = linear_fp8(*given)
    assert made.dtype == dtype
    assert_within("linear", made, scaled_linear_reference(*given._replace(bias=given.bias.float())))


@pytest.mark.parametrize("factored", [True, False], ids=["factor", "no factor"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_go_through_gelu_and_the_factor(factored: bool, dtype: torch.dtype) -> None:
    given, vector = layer(37, 96, 136, dtype), factor(136) if factored else None
    reference = scaled_linear_gelu_reference(*given._replace(bias=given.bias.float()), vector)
    assert_within("linear", linear_fp8_gelu(*given, vector), reference)


def test_rows_may_lie_in_any_number_of_dimensions() -> None:
    given = layer(6, 96, 136, torch.float32)
    split = given._replace(x=given.x.view(2, 3, 1, 96), x_scales=given.x_scales.view(2, 3, 1))
    assert torch.equal(linear_fp8(*split), linear_fp8(*given).view(2, 3, 1, 136))


def test_scales_and_bias_are_the_librarys_beside_a_cpu() -> None:
    given = layer(37, 96, 144, torch.bfloat16, torch.device("meta"))
    with Launches() as launches:
        assert linear_fp8(*given).shape == (1, 37, 144)
    assert launches.names == ["aten._scaled_mm"]


@pytest.mark.parametrize(("inner", "outer"), [(40, 144), (96, 136)], ids=str)
def test_channels_that_the_library_cannot_take_on_cuda_are_refused(inner: int, outer: int) -> None:
    complaint = rf"linear_fp8: .* multiples of 16 channels on CUDA; got {inner} in and {outer} out"
    with pytest.raises(ValueError, match=complaint):
        linear_fp8(*layer(3, inner, outer, torch.bfloat16, torch.device("meta")))


def test_a_model_that_is_not_in_bf16_is_refused_on_cuda() -> None:
    with pytest.raises(ValueError, match=r"linear_fp8_gelu: .* writes bf16 on CUDA; .* torch\.float32"):
        linear_fp8_gelu(*layer(3, 96, 144, torch.float32, torch.device("meta")), None)


def test_rows_in_int8_are_refused() -> None:
    given = layer(3, 96, 144, torch.float32)
    complaint = r"linear_fp8: x must be .* of torch\.float8_e4m3fn; got \[1, 3, 96\] torch\.int8"
    with pytest.raises(ValueError, match=complaint):
        linear_fp8(*given._replace(x=given.x.to(torch.int8)))
