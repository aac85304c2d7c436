"""Rounding to 8 bits is one rule for each of its kinds, for whoever writes and whoever reads."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from kernels.eight_bits import quantize_rows, quantize_rows_fp8
from kernels.quantize import quantize_rows_triton, quantize_tile


@triton.jit
def _quantize_kernel(
    p_x: tl.tensor, p_rounded: tl.tensor, p_scales: tl.tensor, rows: tl.constexpr, channels: tl.constexpr
) -> None:
    o_x = tl.arange(0, rows)[:, None] * channels + tl.arange(0, channels)[None, :]
    b_rounded, b_scales = quantize_tile(tl.load(p_x + o_x))
    tl.store(p_rounded + o_x, b_rounded)
    tl.store(p_scales + tl.arange(0, rows), b_scales)


def test_halves_are_rounded_up_and_zeros_have_a_scale(device: torch.device) -> None:
    x = torch.tensor([[127.0, 0.5, -0.5, -2.5], [0.0, 0.0, 0.0, 0.0]], device=device)
    rounded, scales = torch.empty_like(x, dtype=torch.int8), torch.empty(2, device=device)
    _quantize_kernel[(1,)](x, rounded, scales, rows=2, channels=4)
    assert rounded.tolist() == quantize_rows(x)[0].tolist() == [[127, 1, 0, -2], [0, 0, 0, 0]]
    assert torch.equal(scales, quantize_rows(x)[1])
    assert scales[0] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5,), (1, 7, 77), (2, 3, 1536), (3, 8960)], ids=str)
def test_rows_are_rounded_to_the_bit(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(2)
    spread = torch.logspace(-6, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    x = (spread * torch.randn(shape, generator=generator)).to(device, dtype)
    (rounded, scales), (wanted, wanted_scales) = quantize_rows_triton(x), quantize_rows(x)
    assert torch.equal(rounded, wanted)
    assert torch.equal(scales, wanted_scales)
    assert rounded.shape == shape
    assert rounded.abs().amax() == 127


def test_a_row_is_rounded_alike_whatever_rows_are_beside_it(device: torch.device) -> None:
    x = torch.randn(37, 96, generator=torch.Generator().manual_seed(2)).to(device)
    rounded, scales = quantize_rows_triton(x)
    alone = quantize_rows_triton(x[30:31])
    assert torch.equal(alone[0], rounded[30:31])
    assert torch.equal(alone[1], scales[30:31])


def test_a_row_of_zeros_is_rounded_to_zeros(device: torch.device) -> None:
    rounded, scales = quantize_rows_triton(torch.zeros(3, 40, device=device))
    assert not rounded.any()
    assert (scales > 0).all()


@pytest.mark.parametrize(
    ("x", "complaint"),
    [
        (torch.ones(3, 4).double(), r"one of \['torch\.float32', .*\]; got \[3, 4\] torch\.float64"),
        (torch.ones(0, 4), r"not empty .* got \[0, 4\]"),
        (torch.ones(4, 3).t(), r"contiguous.* got \[3, 4\] torch\.float32 with strides \[1, 3\]"),
        (torch.ones(1, 16385), "rows of 16385 channels; its tile takes at most 16384"),
    ],
    ids=["dtype", "empty", "strides", "channels"],
)
def test_rows_that_do_not_fit_are_refused(x: torch.Tensor, complaint: str, device: torch.device) -> None:
    with pytest.raises(ValueError, match=f"quantize_rows: .*{complaint}"):
        quantize_rows_triton(x.to(device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fp8_rows_reach_the_largest_and_lose_a_sixteenth_at_most(dtype: torch.dtype) -> None:
    spread = torch.logspace(-6, 3, 5).view(-1, 1)
    x = (spread * torch.randn(5, 1536, generator=torch.Generator().manual_seed(2))).to(dtype)
    rounded, scales = quantize_rows_fp8(x)
    assert rounded.dtype == torch.float8_e4m3fn
    assert torch.equal(rounded.float().abs().amax(-1), torch.full((5,), 448.0))
    error = (rounded.float() * scales.unsqueeze(-1) - x.float()).abs()
    # Three bits behind the point, and a fixed step below 2^-6 times the scale.
    assert (error <= torch.maximum(x.float().abs() / 16, scales.unsqueeze(-1) * 2**-10)).all()


def test_a_row_of_zeros_is_zeros_in_fp8() -> None:
    rounded, scales = quantize_rows_fp8(torch.zeros(3, 40))
    assert not rounded.float().any()
    assert (scales > 0).all()
