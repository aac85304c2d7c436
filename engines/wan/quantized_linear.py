"""Linear layers with weights in 8 bits, whose inputs are rounded to 8 bits row by row as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from engines.config.quantization import QuantizationConfig, WeightFormat
from engines.device.fixed_dtypes import FixedDtypes
from kernels.eight_bits import (
    linear_int8_gelu_library,
    linear_int8_library,
    quantize_rows,
    quantize_rows_fp8,
)
from kernels.linear_fp8 import linear_fp8, linear_fp8_gelu


class RoundedRows(NamedTuple):
    """Rows [..., channels] in 8 bits, and their scales [...] fp32: a row is about its 8 bits times its scale."""

    rows: Tensor
    scales: Tensor


class EightBits(NamedTuple):
    """What a format is: its dtype, how rows are rounded to it, and PyTorch's products of such rows and weights."""

    dtype: torch.dtype
    quantize: Callable[[Tensor], tuple[Tensor, Tensor]]
    linear: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    linear_gelu: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]


FORMATS: dict[WeightFormat, EightBits] = {
    "int8": EightBits(torch.int8, quantize_rows, linear_int8_library, linear_int8_gelu_library),
    "fp8": EightBits(torch.float8_e4m3fn, quantize_rows_fp8, linear_fp8, linear_fp8_gelu),
}


class QuantizedLinear(FixedDtypes):
    """x W^T + bias with W about weight x weight_scale, of rows that are rounded first.

    weight: [outputs, inputs], int8 or e4m3.
    weight_scale: [outputs] fp32.
    bias: [outputs], of the model's dtype, which is the result's.
    input_factor: [inputs] fp32 that the input is multiplied by before it is rounded, or None: what SmoothQuant
        could not fold into what comes before.
    """

    weight: Tensor
    weight_scale: Tensor
    input_factor: Tensor | None

    def __init__(self, inputs: int, outputs: int, weights: WeightFormat, *, smoothed: bool = False) -> None:
        super().__init__()
        self.in_features = inputs
        self.out_features = outputs
        self.format = FORMATS[weights]
        self.register_buffer("weight", torch.empty(outputs, inputs, dtype=self.format.dtype))
        self.register_buffer("weight_scale", torch.empty(outputs))
        self.register_buffer("input_factor", torch.empty(inputs) if smoothed else None)
        self.bias = nn.Parameter(torch.empty(outputs))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return self.multiply(self.rounded(x))

    def rounded(self, x: Tensor) -> RoundedRows:
        """The input as the product takes it."""
        return RoundedRows(*self.format.quantize(x if self.input_factor is None else x * self.input_factor))

    def multiply(self, x: RoundedRows) -> Tensor:
        """The product with rows that have been rounded."""
        return self.format.linear(*x, self.weight, self.weight_scale, self.bias)


Projection = nn.Linear | QuantizedLinear
"""A linear layer of a transformer's block."""


def project(x: Tensor, layers: Sequence[Projection]) -> list[Tensor]:
    """What each of `layers`, which share their input, makes of `x`; it is rounded once for those in 8 bits."""
    quantized = next((layer for layer in layers if isinstance(layer, QuantizedLinear)), None)
    rounded = None if quantized is None else quantized.rounded(x)
    return [
        layer(x) if rounded is None or isinstance(layer, nn.Linear) else layer.multiply(rounded)
        for layer in layers
    ]


def quantize_layers(network: nn.Module, config: QuantizationConfig) -> None:
    """Put empty layers in 8 bits, to be loaded into, in the place of those that `config` quantizes."""
    replaced = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and config.quantizes(name)
    }
    for name, layer in replaced.items():
        smoothed = config.smoothing > 0 and name.endswith("ffn.2")
        quantized = QuantizedLinear(layer.in_features, layer.out_features, config.weights, smoothed=smoothed)
        network.set_submodule(name, quantized)
