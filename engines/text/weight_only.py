"""Linear layers that keep their weights in INT8 and compute in the dtype of what they are given.

A prompt's encoder reads all of its weights for some hundred rows, so it is their bytes that cost: half of those in
16 bits. Inputs are not rounded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from engines.device.fixed_dtypes import FixedDtypes


class WeightOnlyLinear(FixedDtypes):
    """x W^T with W about weight [outputs, inputs] int8 times weight_scale [outputs] fp32."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(outputs, inputs, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(outputs))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]; in 16 bits the weights' 255 steps are exact."""
        return F.linear(x, self.weight.to(x.dtype)) * self.weight_scale.to(x.dtype)


def hold_weights_in_int8(network: nn.Module) -> None:
    """Put empty layers of that kind, to be loaded into, in the place of all linear layers. None has a bias."""
    linears = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    for name, layer in linears.items():
        assert layer.bias is None
        network.set_submodule(name, WeightOnlyLinear(layer.in_features, layer.out_features))
