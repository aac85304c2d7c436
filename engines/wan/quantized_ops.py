"""The ops of a quantized transformer in the kernels that backends choose: what makes a row also rounds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn
from typing_extensions import override

from engines.wan.fused_ops import FusedOps
from engines.wan.layer_ops import KV, QKV, AdaLN, Residual
from engines.wan.layers import Attention, side_by_side
from engines.wan.quantized_linear import FORMATS, Projection, QuantizedLinear, RoundedRows
from engines.wan.transformer import CausalTransformer
from kernels import linear_int8
from kernels.dispatch import KernelBackends
from kernels.layernorm_modulate import add_layernorm_int8, add_layernorm_modulate_int8, layernorm_modulate_int8
from kernels.quantize import quantize_rows_triton


class PackedQuantized(NamedTuple):
    """Quantized layers of the same inputs as one: weight [all their outputs, inputs], scale and bias beside it."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layers: Sequence[QuantizedLinear]) -> PackedQuantized:
        """The layers' own tensors become views of it."""
        weights, scales, biases = zip(*((x.weight, x.weight_scale, x.bias) for x in layers), strict=True)
        return cls(side_by_side(weights), side_by_side(scales), side_by_side(biases))

    def outputs_from(self, first: int) -> PackedQuantized:
        """Without the outputs before `first`."""
        return PackedQuantized(*(part[first:] for part in self))


class QuantizedOps(FusedOps):
    """The ops of one quantized transformer; layers that are held back run as those of any other.

    INT8 rows are written by the kernel of the norm before them, or by one of their own behind attention and GELU.
    e4m3 rows are rounded, and multiplied, by PyTorch.
    """

    def __init__(self, transformer: CausalTransformer, backends: KernelBackends) -> None:
        super().__init__(transformer, backends)
        assert transformer.config.quantization is not None
        weights = transformer.config.quantization.weights
        self._format = FORMATS[weights]
        self._int8 = weights == "int8"
        self._rounds_in_norms = self._int8 and self._fuses_norms
        self._quantized_qkv = {
            name: PackedQuantized.of(layers)
            for name, attention in transformer.named_modules()
            if isinstance(attention, Attention) and name.endswith("self_attn")
            and (layers := _all_quantized((attention.q, attention.k, attention.v)))
        }  # fmt: skip

    @override
    def modulated_qkv(
        self, name: str, attention: Attention, residual: Residual, norm: AdaLN
    ) -> tuple[Tensor, QKV]:
        if name not in self._quantized_qkv:
            return super().modulated_qkv(name, attention, residual, norm)
        x, rows = self._modulated_rows(residual, norm, cast(QuantizedLinear, attention.k))
        return x, QKV(*self._multiply(_tokens(rows), self._quantized_qkv[name]).chunk(3, dim=-1))

    @override
    def modulated_kv(self, name: str, attention: Attention, residual: Residual, norm: AdaLN) -> KV:
        if name not in self._quantized_qkv:
            return super().modulated_kv(name, attention, residual, norm)
        _, rows = self._modulated_rows(residual, norm, cast(QuantizedLinear, attention.k))
        packed = self._quantized_qkv[name].outputs_from(attention.q.out_features)
        return KV(*self._multiply(_tokens(rows), packed).chunk(2, dim=-1))

    @override
    def cross_query(
        self, name: str, attention: Attention, residual: Residual, norm: nn.LayerNorm
    ) -> tuple[Tensor, Tensor]:
        x, branch, gate = residual
        if not self._rounds_in_norms or branch is None or not isinstance(attention.q, QuantizedLinear):
            return super().cross_query(name, attention, residual, norm)
        added, *rows = add_layernorm_int8(x, branch, gate, norm.weight, norm.bias, norm.eps)
        return added, self._multiply(_tokens(RoundedRows(*rows)), _alone(attention.q))

    @override
    def mlp(self, name: str, ffn: nn.Sequential, residual: Residual, norm: AdaLN, gate: Tensor) -> Residual:
        up, down = cast(Projection, ffn[0]), cast(Projection, ffn[2])
        if not isinstance(up, QuantizedLinear):
            return super().mlp(name, ffn, residual, norm, gate)
        x, rows = self._modulated_rows(residual, norm, up)
        if not isinstance(down, QuantizedLinear):
            return Residual(x, self._linear(self._gelu(rows, up, None), down), gate)
        hidden = self._gelu(rows, up, down.input_factor)
        return Residual(x, self._multiply(self._rounded(hidden), _alone(down)), gate)

    @override
    def _linear(self, x: Tensor, layer: Projection) -> Tensor:
        if not isinstance(layer, QuantizedLinear):
            return super()._linear(x, layer)
        factor = layer.input_factor
        return self._multiply(self._rounded(x if factor is None else x * factor), _alone(layer))

    def _modulated_rows(
        self, residual: Residual, norm: AdaLN, layer: QuantizedLinear
    ) -> tuple[Tensor, RoundedRows]:
        """The sum, and that normed and rounded for `layer`."""
        x, branch, gate = residual
        if not self._rounds_in_norms:
            x, normed = self._modulated(residual, norm)
            return x, layer.rounded(normed)
        if branch is None:
            return x, RoundedRows(*layernorm_modulate_int8(x, *norm))
        added, *rows = add_layernorm_modulate_int8(x, branch, gate, *norm)
        return added, RoundedRows(*rows)

    def _rounded(self, x: Tensor) -> RoundedRows:
        """Rows that have been multiplied by their layer's factor."""
        if self._int8 and self._own_products:
            return RoundedRows(*quantize_rows_triton(x.contiguous()))
        return RoundedRows(*self._format.quantize(x))

    def _multiply(self, x: RoundedRows, layer: PackedQuantized) -> Tensor:
        if self._int8 and self._own_products:
            return linear_int8.linear_int8(*x, *layer)
        return self._format.linear(*x, *layer)

    def _gelu(self, x: RoundedRows, layer: QuantizedLinear, factor: Tensor | None) -> Tensor:
        """gelu of the product, times `factor` if there is one."""
        if self._int8 and self._own_products:
            return linear_int8.linear_int8_gelu(*x, *_alone(layer), factor)
        return self._format.linear_gelu(*x, *_alone(layer), factor)


def _tokens(rows: RoundedRows) -> RoundedRows:
    """Rows of [B, frames, tokens of a frame] as those of [B, tokens]."""
    return RoundedRows(*(part.flatten(1, 2) for part in rows))


def _alone(layer: QuantizedLinear) -> PackedQuantized:
    return PackedQuantized(layer.weight, layer.weight_scale, layer.bias)


def _all_quantized(layers: Sequence[Projection]) -> list[QuantizedLinear]:
    """The layers, if all of them are quantized."""
    quantized = [layer for layer in layers if isinstance(layer, QuantizedLinear)]
    return quantized if len(quantized) == len(layers) else []
