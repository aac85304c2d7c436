"""SmoothQuant (Xiao et al. 2022): an input's wide channels are made narrower, and its weights wider, before both
are rounded.

An input x and the weights W of its layers become x / s and W s, which changes no product. What divides x costs
nothing where it can be folded into what makes x:

    self_attn.qkv, ffn.0    the modulations of their norm            `TransformerBlock.modulation_factor`
    cross_attn.q            weight and bias of norm3
    self_attn.o             the rows of self_attn.v: attention is linear in its values
    cross_attn.o            the rows of cross_attn.v
    ffn.2                   nowhere, through GELU: `QuantizedLinear.input_factor`
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engines.config.networks import TransformerConfig
from engines.config.quantization import QuantizationConfig
from engines.quantization.inputs import InputStatistics, LayerInput, layer_inputs

LEAST = 1e-5
"""Stands for the range of a channel that is always 0."""

MODULATED = {"self_attn.qkv": (0, 1), "ffn.0": (3, 4)}
"""Shift and factor of the norm that makes an input, among a block's modulations."""

VALUES = {"self_attn.o": "self_attn.v", "cross_attn.o": "cross_attn.v"}


def smoothing_vector(most: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """s of section 3.2, [channels]: what an input that reaches `most` is divided by, for all its weights."""
    columns = torch.stack([weight.float().abs().amax(dim=0) for weight in weights]).amax(dim=0)
    return most.clamp(min=LEAST).pow(alpha) / columns.clamp(min=LEAST).pow(1 - alpha)


def smooth(
    state: dict[str, Tensor], config: TransformerConfig, recipe: QuantizationConfig, statistics: InputStatistics
) -> dict[str, Tensor]:
    """Fold smoothing into `state`, a transformer's tensors in fp32, in place.

    Adds `modulation_factor` to every block, and `input_factor` to every quantized `ffn.2`. Returns what each input
    is divided by now, [channels], by its name.
    """
    for block in range(config.layers):
        like = state[f"blocks.{block}.modulation"][0]
        state[f"blocks.{block}.modulation_factor"] = torch.ones_like(like)
    vectors = {
        given: smoothing_vector(
            statistics.maxima[given.name], [state[f"{layer}.weight"] for layer in given.layers], recipe.smoothing
        )
        for given in layer_inputs(config)
        if given.quantized(recipe)
    }
    for given, vector in vectors.items():
        for layer in given.layers:
            state[f"{layer}.weight"] *= vector
        _divide(state, given, vector)
    return {given.name: vector for given, vector in vectors.items()}


def _divide(state: dict[str, Tensor], given: LayerInput, vector: Tensor) -> None:
    """Divide what makes an input by its vector."""
    block = f"blocks.{given.block}"
    if given.kind in MODULATED:
        state[f"{block}.modulation_factor"][list(MODULATED[given.kind])] /= vector
    elif given.kind in VALUES:
        values = f"{block}.{VALUES[given.kind]}"
        state[f"{values}.weight"] /= vector.unsqueeze(-1)
        state[f"{values}.bias"] /= vector
    elif given.kind == "cross_attn.q":
        state[f"{block}.norm3.weight"] /= vector
        state[f"{block}.norm3.bias"] /= vector
    else:
        state[f"{block}.ffn.2.input_factor"] = 1 / vector
