"""The recipe by which a model is quantized unless another one is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from engines.config.model import ModelConfig
from engines.config.networks import TransformerConfig
from engines.config.quantization import QUANTIZED_LAYERS, QuantizationConfig, WeightFormat

SMOOTHING: Mapping[WeightFormat, float] = {"int8": 0.5, "fp8": 0.0}
"""Alpha of each format: e4m3 holds wide channels and narrow ones alike."""

HELD_BACK: Mapping[tuple[str, WeightFormat], tuple[str, ...]] = {("pocket", "int8"): ("blocks.*.ffn.2",)}
"""Patterns of the layers that a model leaves in 16 bits: with these too in 8, it would lose more than by bf16."""


def default_recipe(weights: WeightFormat, model: ModelConfig) -> QuantizationConfig:
    """How `model` is quantized to `weights`, with rounding that makes up for errors."""
    held_back = layers_matching(HELD_BACK.get((model.name, weights), ()), model.transformer)
    return QuantizationConfig(weights, SMOOTHING[weights], "compensated", held_back)


def quantized_layers(config: TransformerConfig) -> list[str]:
    """Names of all layers that can be in 8 bits."""
    return [f"blocks.{block}.{layer}" for block in range(config.layers) for layer in QUANTIZED_LAYERS]


def layers_matching(patterns: Iterable[str], config: TransformerConfig) -> tuple[str, ...]:
    """Those of them that one of the patterns names, such as "blocks.0.*"."""
    wanted = list(patterns)
    return tuple(
        layer for layer in quantized_layers(config) if any(fnmatchcase(layer, pattern) for pattern in wanted)
    )
