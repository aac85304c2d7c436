"""A transformer's tensors in 8 bits, from those in fp32 and what has been seen of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from engines.config.networks import TransformerConfig
from engines.config.quantization import QuantizationConfig, WeightFormat
from engines.quantization.compensation import round_compensated
from engines.quantization.inputs import InputStatistics, layer_inputs
from engines.quantization.smoothing import smooth
from engines.wan.quantized_linear import FORMATS
from engines.wan.transformer import CausalTransformer
from kernels.eight_bits import FP8_MAX, INT8_MAX

NEAREST: Mapping[WeightFormat, Callable[[Tensor], Tensor]] = {
    "int8": lambda x: torch.floor(x + 0.5).clamp(-INT8_MAX, INT8_MAX),
    "fp8": lambda x: x.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).to(x.dtype),
}
"""How values in units of a row's step go to steps."""


@torch.no_grad()
def quantize(
    state: dict[str, Tensor], config: TransformerConfig, recipe: QuantizationConfig, statistics: InputStatistics
) -> None:
    """Turn `state`, a transformer's tensors in fp32, into what one quantized by `recipe` loads; in place.

    8-bit weights get their format's dtype. A recipe that neither smooths nor compensates needs no `statistics`.
    """
    vectors = smooth(state, config, recipe, statistics) if recipe.smoothing else {}
    for given in layer_inputs(config):
        if not given.quantized(recipe):
            continue
        moments = None
        if recipe.rounding == "compensated":
            moments = _smoothed(statistics.moments[given.name], vectors.get(given.name))
        for layer in filter(recipe.quantizes, given.layers):
            weight, scale = _rounded(state[f"{layer}.weight"], recipe.weights, moments)
            state |= {f"{layer}.weight": weight, f"{layer}.weight_scale": scale}


def quantized_copy(
    transformer: CausalTransformer, recipe: QuantizationConfig, statistics: InputStatistics
) -> CausalTransformer:
    """`transformer`, which stays as it is, quantized; what is not in 8 bits is in fp32, on its device."""
    config = replace(transformer.config, quantization=recipe)
    with torch.device("meta"):
        made = CausalTransformer(config)
    state = {name: tensor.detach().float().clone() for name, tensor in transformer.state_dict().items()}
    quantize(state, config, recipe, statistics)
    made.load_state_dict(state, assign=True)
    return made.eval().requires_grad_(False)


def _smoothed(moments: Tensor, vector: Tensor | None) -> Tensor:
    """Moments of an input that has been divided by `vector`."""
    return moments if vector is None else moments / vector.unsqueeze(0) / vector.unsqueeze(1)


def _rounded(weight: Tensor, weights: WeightFormat, moments: Tensor | None) -> tuple[Tensor, Tensor]:
    """A weight [outputs, inputs] in 8 bits, and the scale of each output."""
    nearest, scale = FORMATS[weights].quantize(weight)
    if moments is None:
        return nearest, scale
    steps = round_compensated(weight / scale.unsqueeze(-1), moments, NEAREST[weights])
    return steps.to(nearest.dtype), scale
