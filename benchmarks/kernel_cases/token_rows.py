"""What a layer does with its tokens beside attention, and the step from flow to latents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernel_cases.case import EPS, Case, MakeCase, Maker, Tensors
from kernels import linear as linears
from kernels.flow_step import flow_step, flow_step_reference
from kernels.layernorm_modulate import (
    add_layernorm_modulate,
    add_layernorm_modulate_reference,
    layernorm_modulate,
    layernorm_modulate_reference,
)
from kernels.rms_norm import rms_norm
from kernels.token_rows import rms_norm_reference


def token_row_cases(make: Maker) -> list[MakeCase]:
    """Every op in 16 or 32 bits."""
    return [
        partial(_rms_norm, make), partial(_layernorm_modulate, make), partial(_add_layernorm_modulate, make),
        *(partial(_linear, make, inner, outer) for inner, outer in make.sizes.products),
        partial(_linear_gelu, make), partial(_flow_step, make),
    ]  # fmt: skip


def _rms_norm(make: Maker, sets: int) -> Case:
    def inputs() -> Tensors:
        return make.randn(1, make.sizes.tokens, make.sizes.dim), make.randn(make.sizes.dim)

    providers = {
        "triton": lambda x, weight: rms_norm(x, weight, EPS),
        "reference": lambda x, weight: rms_norm_reference(x, weight, EPS),
    }
    return make.case("RMS norm", inputs, providers, providers["reference"], 0, sets)


def _layernorm_modulate(make: Maker, sets: int) -> Case:
    providers = {
        "triton": lambda x, shift, factor: layernorm_modulate(x, shift, factor, EPS),
        "reference": lambda x, shift, factor: layernorm_modulate_reference(x, shift, factor, EPS),
    }
    return make.case("modulate", _modulated(make), providers, providers["reference"], 0, sets)


def _add_layernorm_modulate(make: Maker, sets: int) -> Case:
    def inputs() -> Tensors:
        return make.token_rows(), make.token_rows(), *(make.modulation() for _ in range(3))

    ops: dict[str, Callable[..., Tensors]] = {
        "triton": add_layernorm_modulate,
        "reference": add_layernorm_modulate_reference,
    }
    providers = {name: partial(_with_eps, op) for name, op in ops.items()}
    return make.case("gate, residual and modulate", inputs, providers, providers["reference"], 0, sets)


def _with_eps(op: Callable[..., Tensors], *given: Tensor) -> Tensors:
    return op(*given, EPS)


def _modulated(make: Maker) -> Callable[[], Tensors]:
    return lambda: (make.token_rows(), make.modulation(), make.modulation())


def _weights(make: Maker, inputs: int, outputs: int) -> Tensors:
    return make.randn(outputs, inputs) / inputs**0.5, make.randn(outputs)


def _linear(make: Maker, inner: int, outer: int, sets: int) -> Case:
    def inputs() -> Tensors:
        return make.randn(1, make.sizes.tokens, inner), *_weights(make, inner, outer)

    providers: dict[str, Callable[..., Tensor]] = {"triton": linears.linear, "library": F.linear}
    flops = 2 * make.sizes.tokens * inner * outer
    return make.case(f"linear {inner} to {outer}", inputs, providers, F.linear, flops, sets)


def _linear_gelu(make: Maker, sets: int) -> Case:
    dim, ffn = make.sizes.dim, make.sizes.ffn_dim

    def inputs() -> Tensors:
        return make.token_rows(), *_weights(make, dim, ffn)

    reference = linears.linear_gelu_reference
    providers: dict[str, Callable[..., Tensor]] = {
        "triton": linears.linear_gelu, "library": linears.linear_gelu_library, "library, GELU apart": reference
    }  # fmt: skip
    flops = 2 * make.sizes.tokens * dim * ffn
    return make.case(f"linear {dim} to {ffn}, GELU", inputs, providers, reference, flops, sets)


def _flow_step(make: Maker, sets: int) -> Case:
    sizes = make.sizes
    shape = (1, sizes.frames, 16, 2 * sizes.rows, 2 * sizes.columns)
    levels = [torch.full((1,), sigma, device=make.device) for sigma in (0.9, 0.6)]

    def inputs() -> Tensors:
        return make.randn(*shape), make.randn(*shape), make.randn(*shape), *levels

    providers: dict[str, Callable[..., Tensor]] = {"triton": flow_step, "reference": flow_step_reference}
    return make.case("flow step", inputs, providers, flow_step_reference, 0, sets)
