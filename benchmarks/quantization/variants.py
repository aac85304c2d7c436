"""A transformer as it is, and in the ways that it can be rounded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from engines.config.model import ModelConfig
from engines.config.quantization import QUANTIZED_LAYERS, QuantizationConfig
from engines.quantization.inputs import InputStatistics
from engines.quantization.quantizer import quantized_copy
from engines.quantization.recipes import SMOOTHING, default_recipe, quantized_layers
from engines.runner.selection import format_problem
from engines.wan.transformer import CausalTransformer
from kernels.dispatch import EAGER, KernelBackends


@dataclass(frozen=True)
class Variant:
    """One way to round a transformer. What is not in 8 bits has `dtype`; it runs as `backends` say."""

    name: str
    recipe: QuantizationConfig | None
    dtype: torch.dtype = torch.float32
    backends: KernelBackends = EAGER


INT8_WINDOWS = KernelBackends(keys="int8", values="int8")
"""The definitions of ops, over windows as `--preset 24gb` keeps them."""


def whole(config: ModelConfig) -> list[Variant]:
    """All of the transformer: in bf16, as `longtake quantize` makes it, with no layer held back, with weights to
    the nearest step, and as `--preset 24gb` serves it.
    """
    int8, fp8 = default_recipe("int8", config), default_recipe("fp8", config)
    return [
        Variant("bf16", None, torch.bfloat16),
        Variant("int8", int8),
        Variant("int8, the rest in bf16", int8, torch.bfloat16),
        Variant("int8, none held back", replace(int8, held_back=())),
        Variant("int8, nearest", replace(int8, rounding="nearest")),
        Variant("fp8", fp8),
        Variant("fp8, the rest in bf16", fp8, torch.bfloat16),
        Variant("fp8, nearest", replace(fp8, rounding="nearest")),
        Variant("int8, and windows", int8, backends=INT8_WINDOWS),
        Variant("int8, and windows, the rest in bf16", int8, torch.bfloat16, INT8_WINDOWS),
    ]


def runnable(variants: Sequence[Variant], capability: tuple[int, int] | None) -> list[Variant]:
    """Those that CUDA devices of this capability run; None is a CPU, which runs all. Skipped ones are printed."""
    kept = []
    for variant in variants:
        problem = variant.recipe and capability and format_problem(variant.recipe, capability, variant.dtype)
        if problem:
            print(f"  {variant.name}: left out, {problem}", flush=True)
        else:
            kept.append(variant)
    return kept


def by_kind(config: ModelConfig) -> list[Variant]:
    """INT8 in the layers of one kind alone."""
    layers = quantized_layers(config.transformer)
    return [
        _alone(kind, [layer for layer in layers if layer.endswith(f".{kind}")], layers)
        for kind in QUANTIZED_LAYERS
    ]


def by_block(config: ModelConfig) -> list[Variant]:
    """INT8 in one block of the transformer alone."""
    layers = quantized_layers(config.transformer)
    return [
        _alone(str(block), [layer for layer in layers if layer.startswith(f"blocks.{block}.")], layers)
        for block in range(config.transformer.layers)
    ]


def _alone(name: str, chosen: Sequence[str], layers: Sequence[str]) -> Variant:
    held_back = tuple(layer for layer in layers if layer not in chosen)
    return Variant(name, QuantizationConfig("int8", SMOOTHING["int8"], "compensated", held_back))


def rounded(exact: CausalTransformer, variant: Variant, statistics: InputStatistics) -> CausalTransformer:
    """A copy of `exact`, which is in fp32, as `variant` has it."""
    if variant.recipe is None:
        return copy.deepcopy(exact).to(variant.dtype)
    return quantized_copy(exact, variant.recipe, statistics).to(variant.dtype)
