"""Low-rank updates, merged into a transformer while it is loaded."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from engines.loading.checkpoint import Checkpoint, without_wrappers
from engines.loading.state_dict import require_fit
from engines.wan.transformer import CausalTransformer

LORA_ENTRIES = ("generator_lora",)


@dataclass(frozen=True)
class LoRA:
    """A low-rank update of every linear layer in a transformer's blocks (Hu et al. 2021), as PEFT names it.

    The scale, alpha / rank, is 1: LongLive's is 256 / 256, and the file does not say. `scratch` has room for
    the largest of the layers: memory taken and given back layer by layer would leave holes.
    """

    tensors: Checkpoint
    scratch: Tensor

    @classmethod
    def open(cls, path: Path, transformer: CausalTransformer) -> Self:
        """Map the file; WeightsError unless it has both factors, of one rank, for exactly these layers."""
        tensors = Checkpoint.open(path, LORA_ENTRIES).renamed(lora_name)
        ranks = [t.shape[0] for name, t in tensors.items() if name.endswith(".lora_A.weight") and t.ndim == 2]
        rank = statistics.mode(ranks) if ranks else 0
        expected: dict[str, Sequence[int]] = {}
        layers = _adapted_layers(transformer)
        for name, layer in layers.items():
            expected[f"{name}.lora_A.weight"] = (rank, layer.in_features)
            expected[f"{name}.lora_B.weight"] = (layer.out_features, rank)
        require_fit(tensors, expected, f"{path}, a LoRA of rank {rank}, does not fit CausalTransformer")
        return cls(tensors, torch.empty(max(layer.weight.numel() for layer in layers.values())))

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """W + B A in fp32, valid until the next call, if the parameter `name` is adapted; else W as it is."""
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A.weight" not in self.tensors:
            return weight
        a, b = self.tensors[f"{layer}.lora_A.weight"], self.tensors[f"{layer}.lora_B.weight"]
        merged = self.scratch[: weight.numel()].view(weight.shape)
        return merged.copy_(weight).addmm_(b.float(), a.float())


def _adapted_layers(transformer: CausalTransformer) -> dict[str, nn.Linear]:
    named = transformer.blocks.named_modules(prefix="blocks")
    return {name: layer for name, layer in named if isinstance(layer, nn.Linear)}


def lora_name(name: str) -> str:
    """`name` without PEFT's wrapper and adapter."""
    return without_wrappers(name.removeprefix("base_model.model.")).replace(".default.", ".")
