"""INT8 and FP8 without Triton: the rules of rounding, and linear layers of what was rounded.

Rows are rounded with a scale of their own: x is about its 8 bits times the scale.

    x        [..., D]   any floating dtype
    rounded  [..., D]   int8, halves rounded up; or float8_e4m3fn, to the nearest
    scales   [...]      fp32

Layers: see `kernels.linear_int8` for shapes. All implementations finish the sums of products by `scaled` and
`activated`, or as these do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.token_rows import FLOATS

INT8_MAX = 127.0
FP8_MAX = 448.0
"""The largest that float8_e4m3fn holds."""

MIN_AMAX = 1e-30
"""Stands for the largest of a row of zeros, which is divided by."""

INT8_ROWS = 17
"""The fewest that the library's INT8 product takes on CUDA."""

INT8_CHANNELS = 8
"""What it demands there of the channels in and out to be multiples of."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """INT8 of x [..., D] by its largest channel, halves rounded up, and fp32 scales [...]."""
    rows = x.float()
    scales = int8_scales(rows.abs().amax(dim=-1))
    return int8_levels(rows, scales), scales


def int8_scales(amax: Tensor) -> Tensor:
    """The fp32 scales [...] of rows whose largest channels are `amax` [...], fp32."""
    return amax.clamp(min=MIN_AMAX).div_(INT8_MAX)


def int8_levels(rows: Tensor, scales: Tensor) -> Tensor:
    """fp32 rows [..., D] as INT8 of their scales [...], halves rounded up."""
    return (rows / scales.unsqueeze(-1)).add_(0.5).floor_().to(torch.int8)


def quantize_rows_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn of x [..., D] by its largest channel, and fp32 scales [...]."""
    rows = x.float()
    scales = rows.abs().amax(dim=-1).clamp_(min=MIN_AMAX).div_(FP8_MAX)
    return (rows / scales.unsqueeze(-1)).to(torch.float8_e4m3fn), scales


def scaled_linear_reference(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor
) -> Tensor:
    """The definition for either format, with sums in fp64, which holds those of integers exactly."""
    sums = x.double() @ weight.double().t()
    return scaled(sums, x_scales, weight_scales, bias).to(bias.dtype)


def scaled_linear_gelu_reference(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor, factor: Tensor | None
) -> Tensor:
    """The first half of the transformer's feed-forward net, with what smooths the second half's input."""
    sums = x.double() @ weight.double().t()
    return activated(scaled(sums, x_scales, weight_scales, bias), factor).to(bias.dtype)


def linear_int8_library(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor
) -> Tensor:
    """As `scaled_linear_reference`, by PyTorch's product of INT8.

    Raises:
        ValueError: on CUDA, the channels in or out are not a multiple of 8.

    """
    sums = _int8_sums("linear_int8", x, weight)
    return scaled(sums, x_scales, weight_scales, bias).to(bias.dtype)


def linear_int8_gelu_library(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor, factor: Tensor | None
) -> Tensor:
    """As `scaled_linear_gelu_reference`, by PyTorch's product of INT8. Raises like `linear_int8_library`."""
    sums = _int8_sums("linear_int8_gelu", x, weight)
    return activated(scaled(sums, x_scales, weight_scales, bias), factor).to(bias.dtype)


def _int8_sums(op: str, x: Tensor, weight: Tensor) -> Tensor:
    (outer, inner), rows = weight.shape, x.reshape(-1, x.shape[-1])
    count = len(rows)
    # Dry runs on meta stand for CUDA.
    if x.device.type != "cpu":
        if outer % INT8_CHANNELS or inner % INT8_CHANNELS:
            raise ValueError(
                f"{op}: the library's INT8 product takes multiples of {INT8_CHANNELS} channels on CUDA; got "
                f"{inner} in and {outer} out. Use the Triton kernel, or hold this layer back in 16 bits"
            )
        if count < INT8_ROWS:
            rows = F.pad(rows, (0, 0, 0, INT8_ROWS - count))
    return torch._int_mm(rows, weight.t())[:count].view(*x.shape[:-1], outer)


def scaled(sums: Tensor, x_scales: Tensor, weight_scales: Tensor, bias: Tensor) -> Tensor:
    """What the sums of products of 8 bits stand for, with a bias, in fp32."""
    return sums.to(torch.float32).mul_(x_scales.unsqueeze(-1)).mul_(weight_scales).add_(bias)


def activated(rows: Tensor, factor: Tensor | None) -> Tensor:
    """GELU of fp32 rows, times the factor."""
    made = _gelu(rows)
    return made if factor is None else made.mul_(factor)


def _gelu(x: Tensor) -> Tensor:
    """The tanh form, of fp32.

    On a CPU PyTorch's own takes the elements that fill no vector register at the end by other means than the rest,
    and then a row's last places depend on the rows beside it. An exponential does not, and takes no longer.
    """
    if x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    # x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u))
    twice = 2 * math.sqrt(2 / math.pi)
    return x / (x * x).mul_(-0.044715 * twice).sub_(twice).mul_(x).exp_().add_(1)


def check_scaled(
    op: str, dtype: torch.dtype, x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor,
    factor: Tensor | None,
) -> None:  # fmt: skip
    """Raise ValueError unless rows and weight of 8 bits, their scales, a bias and a factor fit one another."""
    if x.numel() == 0:
        raise ValueError(f"{op}: x is empty: {list(x.shape)}")
    channels = weight.shape[:1]
    wanted: list[tuple[str, Tensor, Sequence[int], tuple[torch.dtype, ...]]] = [
        ("x", x, x.shape, (dtype,)),
        ("x_scales", x_scales, x.shape[:-1], (torch.float32,)),
        ("weight", weight, (*channels, x.shape[-1]), (dtype,)),
        ("weight_scales", weight_scales, channels, (torch.float32,)),
        ("bias", bias, channels, tuple(FLOATS)),
        *([] if factor is None else [("factor", factor, channels, tuple(FLOATS))]),
    ]
    for name, tensor, shape, dtypes in wanted:
        if tensor.shape != tuple(shape) or tensor.dtype not in dtypes or not tensor.is_contiguous():
            raise ValueError(
                f"{op}: {name} must be contiguous {list(shape)} of {' or '.join(map(str, dtypes))}; got "
                f"{list(tensor.shape)} {tensor.dtype} with strides {list(tensor.stride())}"
            )
        if tensor.device != x.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, x on {x.device}")
