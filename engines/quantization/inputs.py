"""The inputs of a block's linear layers: which layers share one, and what is seen of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from engines.config.networks import TransformerConfig
from engines.config.quantization import QuantizationConfig

READERS: Mapping[str, tuple[str, ...]] = {
    "self_attn.qkv": ("self_attn.q", "self_attn.k", "self_attn.v"),
    "self_attn.o": ("self_attn.o",),
    "cross_attn.q": ("cross_attn.q",),
    "cross_attn.o": ("cross_attn.o",),
    "ffn.0": ("ffn.0",),
    "ffn.2": ("ffn.2",),
}
"""The layers that read each input of a block."""


SAMPLED_ROWS = 256
"""Of each input in each pass, at most, whose moments are added up: all that the pocket model has, and of the 1.3B
model's 4680 enough for 8960 channels after a few prompts."""


@dataclass(frozen=True)
class LayerInput:
    """One input of a block; `layers` read it."""

    block: int
    kind: str

    @property
    def name(self) -> str:
        """Such as "blocks.5.self_attn.qkv"."""
        return f"blocks.{self.block}.{self.kind}"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in a state dict."""
        return tuple(f"blocks.{self.block}.{layer}" for layer in READERS[self.kind])

    def quantized(self, config: QuantizationConfig) -> bool:
        """Whether it is rounded for any of its layers."""
        return any(config.quantizes(layer) for layer in self.layers)


def layer_inputs(config: TransformerConfig) -> list[LayerInput]:
    """All of a transformer's."""
    return [LayerInput(block, kind) for block in range(config.layers) for kind in READERS]


@dataclass(frozen=True)
class InputStatistics:
    """What has been seen of each input, by its name.

    maxima: [channels] fp32, the largest magnitude of each channel.
    moments: [channels, channels] fp32, the sum of x x^T over a sample of its rows, where they are asked for: 11 GB
        for the 1.3B model.
    """

    maxima: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, x: Tensor, *, moments: bool) -> None:
        """Take into account what an input [..., channels] is now."""
        rows = x.detach().flatten(0, -2).float()
        most = rows.abs().amax(dim=0)
        self.maxima[name] = torch.maximum(self.maxima.get(name, most), most)
        if moments:
            sample = rows[:: -(-len(rows) // SAMPLED_ROWS)]
            if name not in self.moments:
                self.moments[name] = rows.new_zeros(rows.shape[1], rows.shape[1])
            self.moments[name].addmm_(sample.t(), sample)


@contextmanager
def watched(
    transformer: nn.Module, config: TransformerConfig, *, moments: bool = True
) -> Iterator[InputStatistics]:
    """Statistics that grow with every pass that `transformer` makes until the end of the block."""
    statistics = InputStatistics()
    handles = []
    for given in layer_inputs(config):
        # A pass made for keys and values reads the last of an input's layers, and perhaps not its first.
        reader = transformer.get_submodule(given.layers[-1])
        handles.append(reader.register_forward_pre_hook(_adding(statistics, given.name, moments)))
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()


def _adding(
    statistics: InputStatistics, name: str, moments: bool
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        statistics.add(name, inputs[0], moments=moments)

    return add
