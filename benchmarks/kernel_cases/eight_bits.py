"""What `benchmarks.kernels` measures of INT8 and FP8: rounding rows, and linear layers of what was rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernel_cases.case import EPS, Case, MakeCase, Maker, Tensors
from kernels import eight_bits
from kernels import linear_fp8 as fp8
from kernels import linear_int8 as int8
from kernels.eight_bits import quantize_rows, quantize_rows_fp8
from kernels.layernorm_modulate import (
    add_layernorm_modulate_int8,
    add_layernorm_modulate_int8_reference,
    layernorm_modulate_int8,
    layernorm_modulate_int8_reference,
)
from kernels.quantize import quantize_rows_triton
from kernels.tiles import INTERPRETER, architecture

ROUNDED_BOUND = 1e-2
"""For INT8 whose 255 levels are computed otherwise: few of them are one off."""

FP8_CHIPS = (INTERPRETER, 89, 90, 100, 120)
"""Those on which PyTorch multiplies FP8; and the CPU."""


def eight_bit_cases(make: Maker) -> list[MakeCase]:
    """Every op that this device has."""
    sizes, chip = make.sizes, architecture(make.device)
    products = [
        *(partial(_linear_int8, make, inner, outer) for inner, outer in sizes.products),
        partial(_linear_int8_gelu, make),
    ]
    products_fp8 = [
        *(partial(_linear_fp8, make, inner, outer) for inner, outer in sizes.products),
        partial(_linear_fp8_gelu, make),
    ]
    return [
        partial(_layernorm_modulate_int8, make), partial(_add_layernorm_modulate_int8, make),
        *(partial(_quantize_rows, make, channels) for channels in (sizes.dim, sizes.ffn_dim)),
        *products, *(products_fp8 if chip in FP8_CHIPS else []),
    ]  # fmt: skip


def _layernorm_modulate_int8(make: Maker, sets: int) -> Case:
    def inputs() -> Tensors:
        return make.token_rows(), make.modulation(), make.modulation()

    providers: dict[str, Callable[..., Tensors]] = {
        "triton": partial(layernorm_modulate_int8, eps=EPS),
        "reference": partial(layernorm_modulate_int8_reference, eps=EPS),
    }
    return make.case("modulate to int8", inputs, providers, providers["reference"], 0, sets, ROUNDED_BOUND)


def _add_layernorm_modulate_int8(make: Maker, sets: int) -> Case:
    def inputs() -> Tensors:
        return make.token_rows(), make.token_rows(), *(make.modulation() for _ in range(3))

    providers: dict[str, Callable[..., Tensors]] = {
        "triton": partial(add_layernorm_modulate_int8, eps=EPS),
        "reference": partial(add_layernorm_modulate_int8_reference, eps=EPS),
    }
    name = "gate, residual and modulate to int8"
    return make.case(name, inputs, providers, providers["reference"], 0, sets, ROUNDED_BOUND)


def _quantize_rows(make: Maker, channels: int, sets: int) -> Case:
    providers: dict[str, Callable[..., Tensors]] = {"triton": quantize_rows_triton, "reference": quantize_rows}
    name = f"rows of {channels} to int8"
    return make.case(
        name, lambda: (make.randn(1, make.sizes.tokens, channels),), providers, quantize_rows, 0, sets
    )


def _linear_int8(make: Maker, inner: int, outer: int, sets: int) -> Case:
    providers: dict[str, Callable[..., Tensor]] = {
        "triton": int8.linear_int8,
        "library": eight_bits.linear_int8_library,
    }
    return make.case(
        f"linear {inner} to {outer}, int8",
        lambda: _layer(make, quantize_rows, inner, outer),
        _with_tiles(make, providers),
        eight_bits.scaled_linear_reference,
        0,
        sets,
        eight_bit_ops=2 * make.sizes.tokens * inner * outer,
    )


def _linear_int8_gelu(make: Maker, sets: int) -> Case:
    inner, outer = make.sizes.dim, make.sizes.ffn_dim
    providers: dict[str, Callable[..., Tensor]] = {
        "triton": int8.linear_int8_gelu,
        "library, GELU apart": eight_bits.linear_int8_gelu_library,
    }
    return make.case(
        f"linear {inner} to {outer}, GELU and factor, int8",
        lambda: (*_layer(make, quantize_rows, inner, outer), _factor(make, outer)),
        _with_tiles(make, providers),
        eight_bits.scaled_linear_gelu_reference,
        0,
        sets,
        eight_bit_ops=2 * make.sizes.tokens * inner * outer,
    )


def _linear_fp8(make: Maker, inner: int, outer: int, sets: int) -> Case:
    return make.case(
        f"linear {inner} to {outer}, fp8",
        lambda: _layer(make, quantize_rows_fp8, inner, outer),
        {"library": fp8.linear_fp8},
        eight_bits.scaled_linear_reference,
        0,
        sets,
        eight_bit_ops=2 * make.sizes.tokens * inner * outer,
    )


def _linear_fp8_gelu(make: Maker, sets: int) -> Case:
    inner, outer = make.sizes.dim, make.sizes.ffn_dim
    return make.case(
        f"linear {inner} to {outer}, GELU and factor, fp8",
        lambda: (*_layer(make, quantize_rows_fp8, inner, outer), _factor(make, outer)),
        {"library, GELU apart": fp8.linear_fp8_gelu},
        eight_bits.scaled_linear_gelu_reference,
        0,
        sets,
        eight_bit_ops=2 * make.sizes.tokens * inner * outer,
    )


def _layer(make: Maker, rounded: Callable[[Tensor], tuple[Tensor, Tensor]], inner: int, outer: int) -> Tensors:
    """Rows and weights with their scales, and a bias."""
    x, weight = make.randn(1, make.sizes.tokens, inner), make.randn(outer, inner) / inner**0.5
    return *rounded(x), *rounded(weight), make.randn(outer)


def _factor(make: Maker, channels: int) -> Tensor:
    return torch.rand(channels, device=make.device) + 0.5


def _with_tiles(make: Maker, providers: Mapping[str, Callable[..., Tensor]]) -> dict[str, Callable[..., Tensor]]:
    """Without Triton's where it has no tile of INT8."""
    has_tile = architecture(make.device) in int8.TILES
    return {name: provider for name, provider in providers.items() if has_tile or name != "triton"}
