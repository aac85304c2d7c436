"""A linear layer of FP8 rows and weights, and the GELU that may follow it, by PyTorch's product.

    linear_fp8       (x w^T) x_scales weight_scales + bias
    linear_fp8_gelu  gelu(that), the tanh form; then times factor, where there is one

    x              [..., K]   float8_e4m3fn, contiguous, as `quantize_rows_fp8` rounds rows
    x_scales       [...]      fp32
    weight         [N, K]     float8_e4m3fn, contiguous
    weight_scales  [N]        fp32
    bias           [N]        fp32, fp16 or bf16; on CUDA bf16
    factor         [N]        any of these
    out            [..., N]   of the dtype of bias

For chips that are not made for INT8, and layers that lose too much by it. On a CPU this shows what FP8 does to a
model, and is no faster than fp32. A block at 480x832 has 4680 tokens: with K = 1536 and N = 8960 that is
129 GFLOP, 65 us at the 1979 TFLOP/s of an H200's data sheet.

Bytes of a call with M tokens on CUDA: M K + N K + 2 M N, in that example 105 MB or 22 us of an H200's memory. GELU
and factor are kernels of their own there: 8 M N more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.eight_bits import activated, check_scaled, scaled

LIBRARY_CHANNELS = 16
"""What the library demands on CUDA of the channels in and out to be multiples of."""

LIBRARY_CHIP = (8, 9)
"""The first compute capability for which it has a product."""

LIBRARY_OUTPUT = torch.bfloat16
"""What that writes on CUDA where each row has a scale."""


def linear_fp8(x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor) -> Tensor:
    """As `scaled_linear_reference`, with sums in fp32.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit; or on CUDA the channels in or out are not a
            multiple of 16, or the bias is not bf16.

    """
    _check("linear_fp8", x, x_scales, weight, weight_scales, bias)
    if x.device.type == "cpu":
        return scaled(_sums(x, weight), x_scales, weight_scales, bias).to(bias.dtype)
    return _scaled_rows(x, x_scales, weight, weight_scales, bias)


def linear_fp8_gelu(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor, factor: Tensor | None
) -> Tensor:
    """As `scaled_linear_gelu_reference`, on CUDA rounding after each step. Raises like `linear_fp8`."""
    _check("linear_fp8_gelu", x, x_scales, weight, weight_scales, bias, factor)
    if x.device.type == "cpu":
        return activated(scaled(_sums(x, weight), x_scales, weight_scales, bias), factor).to(bias.dtype)
    made = F.gelu(_scaled_rows(x, x_scales, weight, weight_scales, bias), approximate="tanh")
    return made if factor is None else made.mul_(factor)


def _sums(x: Tensor, weight: Tensor) -> Tensor:
    """x w^T on a CPU in fp32. Not all of its versions take a scale for each row, so none has one."""
    one = torch.ones(())
    sums = torch._scaled_mm(x.view(-1, x.shape[-1]), weight.t(), one, one, out_dtype=torch.float32)
    return sums.view(*x.shape[:-1], len(weight))


def _scaled_rows(x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor) -> Tensor:
    """All but GELU on CUDA; dry runs on meta stand for it."""
    rows = torch._scaled_mm(
        x.view(-1, x.shape[-1]), weight.t(), x_scales.view(-1, 1), weight_scales.view(1, -1), bias=bias,
        out_dtype=bias.dtype,
    )  # fmt: skip
    return rows.view(*x.shape[:-1], len(weight))


def _check(
    op: str, x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor,
    factor: Tensor | None = None,
) -> None:  # fmt: skip
    check_scaled(op, torch.float8_e4m3fn, x, x_scales, weight, weight_scales, bias, factor)
    if x.device.type == "cpu":
        return
    outer, inner = weight.shape
    if outer % LIBRARY_CHANNELS or inner % LIBRARY_CHANNELS:
        raise ValueError(
            f"{op}: the library's FP8 product takes multiples of {LIBRARY_CHANNELS} channels on CUDA; got "
            f"{inner} in and {outer} out. Hold this layer back in 16 bits"
        )
    if bias.dtype != LIBRARY_OUTPUT:
        raise ValueError(f"{op}: the library's FP8 product writes bf16 on CUDA; got a model in {bias.dtype}")
