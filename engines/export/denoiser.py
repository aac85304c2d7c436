"""Passes of the denoiser as graphs: one for each number of frames, and of others that they attend.

A pass's own keys and values come out, and whoever runs the graph writes them into their slots: a write inside
would be lost. Those of the other slots go in, for each layer and slot by itself, so that each may lie where it is.
Keys go in and come out turned to their positions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from engines.cache.window import NOT_WRITTEN, Placement, window_policy
from engines.config.geometry import PATCH, SPATIAL_FACTOR
from engines.config.stream import StreamConfig
from engines.config.validation import require, require_positive
from engines.export.exporter import GraphFacts, export_graph
from engines.export.graph import StageGraph
from engines.wan.layers import MODULATIONS, Attention
from engines.wan.transformer import AdaLNModulation, CausalTransformer

LATENTS, FLOW = "latents", "flow"
LAYER_MODULATIONS, HEAD_MODULATIONS = "layer_modulations", "head_modulations"
COSINES, SINES = "cosines", "sines"

OPSET = 23
"""The first with an attention of its own: written as products and a softmax it would hold all scores at once."""

RECIPES = {
    torch.float32: "fp32",
    torch.float16: "fp16, norms and rotations in fp32",
    torch.bfloat16: "bf16, norms and rotations in fp32",
}


@dataclass(frozen=True)
class DenoiserCall:
    """One kind of pass: over `frames` latent frames of `height` x `width` pixels, and others that it attends.

    `slots` are the latent frames in each of the others' slots, or runs of them.
    """

    frames: int
    slots: tuple[int, ...]
    height: int
    width: int

    def __post_init__(self) -> None:
        require_positive(frames=self.frames, height=self.height, width=self.width)
        require(min(self.slots, default=1) >= 1, f"slots are {self.slots}; each has a frame at least")

    @classmethod
    def of(cls, stream: StreamConfig) -> Self:
        """That of a stream's later blocks, over a full window."""
        return cls.over(stream, stream.block_frames, stream.window_frames - stream.block_frames)

    @classmethod
    def over(cls, stream: StreamConfig, frames: int, others: int) -> Self:
        """Slots are blocks where sink, window and blocks are whole ones of one length, else frames."""
        block = stream.blocks.later
        whole = stream.blocks.first == block and not (stream.sink_frames % block or stream.window_frames % block)
        run = block if whole else 1
        return cls(frames, (run,) * (others // run), stream.height, stream.width)

    @property
    def attended(self) -> int:
        """Latent frames that the pass attends, its own among them."""
        return self.frames + sum(self.slots)

    @property
    def name(self) -> str:
        """Such as `denoiser-3-of-12`."""
        return f"denoiser-{self.frames}-of-{self.attended}"

    @property
    def frame_tokens(self) -> int:
        """Tokens of a latent frame."""
        side = SPATIAL_FACTOR * PATCH
        return (self.height // side) * (self.width // side)


def denoiser_calls(stream: StreamConfig) -> list[DenoiserCall]:
    """Every kind of pass that such streams make: over their blocks, and to recompute windows.

    Raises ConfigError where each step has a window of its own, and where the sink ends within a block: later steps
    would not write what they attend.
    """
    require(stream.lanes == 1, "there are no graphs with a window for each step; leave the denoiser to PyTorch")
    policy, begin, placements = window_policy(stream), 0, list[Placement]()
    while begin <= stream.window_frames:
        frames = stream.blocks.later if begin else stream.blocks.first
        placements += [policy.place(begin, frames, repeat=repeat) for repeat in (False, True)]
        begin += frames
        placements.append(policy.place_recache(begin))
    written = all(NOT_WRITTEN not in slots for placement in placements for slots in placement.slots)
    problem = f"a frame sink of {stream.sink_frames} ends within a block; leave the denoiser to PyTorch"
    require(written, problem)
    kinds = dict.fromkeys((each.frames, each.used - each.first - each.frames) for each in placements)
    return [DenoiserCall.over(stream, *kind) for kind in sorted(kinds)]


class LayerKV(NamedTuple):
    """Keys [tokens, heads, channels], turned, and values of some slot in one layer."""

    keys: Tensor
    values: Tensor


class LayerNames(NamedTuple):
    """Of keys and values."""

    keys: str
    values: str


def slot_names(layer: int, slot: int) -> LayerNames:
    """What keys and values of another slot go in as."""
    return LayerNames(f"keys_{layer}_{slot}", f"values_{layer}_{slot}")


def prompt_names(layer: int) -> LayerNames:
    """What those of the prompt go in as, all `text_len` positions of them."""
    return LayerNames(f"prompt_keys_{layer}", f"prompt_values_{layer}")


def own_names(layer: int) -> LayerNames:
    """What those of the pass's own frames come out as."""
    return LayerNames(f"own_keys_{layer}", f"own_values_{layer}")


class _Window:
    """The `AttentionContext` of an exported pass: keeps nothing but what is to come out."""

    def __init__(
        self, others: Sequence[Sequence[LayerKV]], prompt: Sequence[LayerKV], cosines: Tensor, sines: Tensor
    ) -> None:
        self._others = others
        self._prompt = prompt
        self._cosines = cosines.unsqueeze(1)
        self._sines = sines.unsqueeze(1)
        self.own: list[LayerKV] = []

    def self_attention(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Over the other slots and the pass's own keys; order does not matter to a softmax."""
        self.write_kv(layer, attention, k, v)
        window = [*self._others[layer], self.own[layer]]
        keys, values = (torch.cat(parts) for parts in zip(*window, strict=True))
        return _attend(self._turned(attention.queries(q)[0]), keys, values)

    def write_kv(self, layer: int, attention: Attention, k: Tensor, v: Tensor) -> None:
        """To come out."""
        self.own.append(LayerKV(self._turned(attention.keys(k)[0]), attention.heads_of(v)[0]))

    def cross_attention(self, layer: int, attention: Attention, q: Tensor) -> Tensor:
        """Over the prompt."""
        return _attend(attention.queries(q)[0], *self._prompt[layer])

    def _turned(self, x: Tensor) -> Tensor:
        """As `kernels.attention.rope.apply_rope`, in real numbers: the exporter knows no others."""
        real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = (real * self._cosines - imaginary * self._sines, real * self._sines + imaginary * self._cosines)
        return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)


def _attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Of queries [T, heads, channels] over keys and values [S, heads, channels]: [1, T, heads, channels]."""
    queries, keys, values = (x.transpose(0, 1).unsqueeze(0) for x in (q, keys, values))
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)


class _Pass(nn.Module):
    """A pass with all that it attends among its arguments, and all that it keeps among its results."""

    def __init__(self, transformer: CausalTransformer, slots: int) -> None:
        super().__init__()
        self.transformer = transformer
        self._slots = slots

    @override
    def forward(
        self, latents: Tensor, layers: Tensor, head: Tensor, cosines: Tensor, sines: Tensor, *kept: Tensor
    ) -> tuple[Tensor, ...]:
        """Flow of the shape of `latents`, then own keys and values, layer by layer."""
        pairs = [LayerKV(*kept[start : start + 2]) for start in range(0, len(kept), 2)]
        each = self._slots + 1
        by_layer = [pairs[start : start + each] for start in range(0, len(pairs), each)]
        window = _Window([of[:-1] for of in by_layer], [of[-1] for of in by_layer], cosines, sines)
        modulation = AdaLNModulation(latents.new_empty(0), layers, head)
        flow = self.transformer.denoise(latents, modulation, window)
        return (flow, *(tensor for own in window.own for tensor in own))


def export_denoiser(
    transformer: CausalTransformer, call: DenoiserCall, folder: Path, weights: str, dtype: torch.dtype
) -> StageGraph:
    """The graph of `call`; `transformer`, whose weights are not in 8 bits, is left as it is.

    Inputs are latents [1, frames, channels, height/8, width/8]; modulations of one timestep, see
    `AdaLNModulation`; cosines and sines [tokens, channels of a head / 2] fp32 of the frames' positions; and for
    each layer keys and values of each other slot and of the prompt.

    Raises as `export_graph`; ConfigError for 8-bit weights and for another dtype.
    """
    require(dtype in RECIPES, f"denoisers are exported in {' or '.join(map(str, RECIPES))}, not {dtype}")
    quantized = transformer.config.quantization is not None
    require(not quantized, "a denoiser in 8 bits has kernels of its own; export the model that it was made of")
    inputs = _plain_inputs(transformer, call, dtype) | {
        name: torch.zeros(tokens, transformer.config.heads, transformer.config.head_dim, dtype=dtype)
        for name, tokens in _kept(transformer, call)
    }
    outputs = [FLOW, *(name for layer in range(transformer.config.layers) for name in own_names(layer))]
    facts = GraphFacts(call.name, "denoiser", (), RECIPES[dtype], weights)
    network = _Pass(copy.deepcopy(transformer).to("cpu", dtype), len(call.slots))
    return export_graph(network, inputs, outputs, facts, folder, OPSET)


def _plain_inputs(transformer: CausalTransformer, call: DenoiserCall, dtype: torch.dtype) -> dict[str, Tensor]:
    config = transformer.config
    rows, columns = call.height // SPATIAL_FACTOR, call.width // SPATIAL_FACTOR
    turns = torch.zeros(call.frames * call.frame_tokens, config.head_dim // 2)
    return {
        LATENTS: torch.zeros(1, call.frames, config.latent_channels, rows, columns, dtype=dtype),
        LAYER_MODULATIONS: torch.zeros(config.layers, 1, 1, MODULATIONS, config.dim, dtype=dtype),
        HEAD_MODULATIONS: torch.zeros(1, 1, 2, config.dim, dtype=dtype),
        COSINES: turns,
        SINES: turns.clone(),
    }


def _kept(transformer: CausalTransformer, call: DenoiserCall) -> list[tuple[str, int]]:
    """Names of keys and values that go in, in their order, and their tokens."""
    found = []
    for layer in range(transformer.config.layers):
        for slot, frames in enumerate(call.slots):
            found += [(name, frames * call.frame_tokens) for name in slot_names(layer, slot)]
        found += [(name, transformer.config.text_len) for name in prompt_names(layer)]
    return found
