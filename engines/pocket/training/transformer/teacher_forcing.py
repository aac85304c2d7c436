"""Attention over a stretch of a stream as it would be served, but for many blocks at once and with gradients.

A pass holds the clean blocks of a stretch, as their clean passes would see them, followed by noisy copies of some,
each of which sees the clean blocks of its window and itself: teacher forcing. Keys are kept unrotated, so that the
sink can stand where relative RoPE puts it for each block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.config.stream import StreamConfig
from engines.errors import ConfigError
from engines.wan.layers import Attention
from engines.wan.transformer import CausalTransformer
from kernels.attention.rope import apply_rope, frame_freqs, join_freqs, spatial_freqs

KeyValue = tuple[Tensor, Tensor]
"""Unrotated keys and values of a block, [B, tokens, heads, channels] each."""


@dataclass(frozen=True)
class Stretch:
    """Which blocks of a stream a pass holds.

    `numbers` are the blocks present, in ascending order from 0 on; a gap stands for a past that is not there.
    `noisy` are those that are denoised. The first `recached` blocks have been through a KV recache: they all see
    each other.
    """

    numbers: tuple[int, ...]
    noisy: tuple[int, ...]
    recached: int = 0

    def __post_init__(self) -> None:
        if self.numbers != tuple(sorted(set(self.numbers))) or self.numbers[:1] != (0,):
            raise ConfigError(f"blocks {self.numbers} are not ascending from 0")
        if not self.noisy or not set(self.noisy) <= set(self.numbers):
            raise ConfigError(f"noisy blocks {self.noisy} are not among {self.numbers}")
        if self.numbers[: self.recached] != tuple(range(self.recached)):
            raise ConfigError(f"the first {self.recached} of blocks {self.numbers} are not the stream's first")

    @property
    def clean(self) -> tuple[int, ...]:
        """The blocks that others see: all but the last."""
        return self.numbers[:-1]

    @property
    def size(self) -> int:
        """Blocks in a pass, clean and noisy."""
        return len(self.clean) + len(self.noisy)


class WindowBlocks(NamedTuple):
    """Blocks of a window, its sink included, and of its sink."""

    window: int
    sink: int

    @classmethod
    def of(cls, config: StreamConfig) -> WindowBlocks:
        """Those of a stream; ConfigError unless both are whole blocks, and the first block is like the others."""
        lengths = config.blocks
        whole = config.window_frames % lengths.later == config.sink_frames % lengths.later == 0
        if not whole or lengths.first != lengths.later:
            raise ConfigError(
                f"training knows windows of whole blocks; a window of {config.window_frames}, a sink of "
                f"{config.sink_frames} and a first block of {lengths.first} frames are none of {lengths.later}"
            )
        return cls(config.window_frames // lengths.later, config.sink_frames // lengths.later)


class Window:
    """What each block of a stream attends, and how it is rotated."""

    def __init__(self, config: StreamConfig, head_dim: int, device: torch.device) -> None:
        if config.rope != "relative" or config.sink != "global":
            raise ConfigError(
                f"training knows relative RoPE and a global sink, not {config.rope!r}, {config.sink!r}"
            )
        self._blocks = WindowBlocks.of(config)
        self._block_frames = config.block_frames
        self._head_dim = head_dim
        self._spatial = spatial_freqs(config.rows, config.columns, head_dim).to(device)
        self._turns: dict[int, Tensor] = {}

    def past(self, number: int) -> list[int]:
        """The blocks that block `number` sees besides itself."""
        sink, ring = self._blocks.sink, self._blocks.window - self._blocks.sink
        return [*range(min(sink, number)), *range(max(sink, number - ring + 1), number)]

    def attend(self, number: int, queries: Tensor, own: KeyValue, past: Mapping[int, KeyValue]) -> Tensor:
        """Of unrotated queries [B, tokens, heads, channels] of a block, over itself and what `past` has."""
        seen = [block for block in self.past(number) if block in past]
        keys = [apply_rope(past[block][0], self.turns(self._place(block, number))) for block in seen]
        keys.append(apply_rope(own[0], self.turns(number)))
        values = [*(past[block][1] for block in seen), own[1]]
        return attention(apply_rope(queries, self.turns(number)), torch.cat(keys, 1), torch.cat(values, 1))

    def attend_all(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Of the first blocks of a stream over one another, as in a KV recache."""
        blocks = queries.shape[1] // (self._block_frames * self._spatial.shape[0])
        turns = torch.cat([self.turns(block) for block in range(blocks)])
        return attention(apply_rope(queries, turns), apply_rope(keys, turns), values)

    def turns(self, number: int) -> Tensor:
        """RoPE of a block."""
        if number not in self._turns:
            start = number * self._block_frames
            frame = frame_freqs(range(start, start + self._block_frames), self._head_dim)
            self._turns[number] = join_freqs(frame.to(self._spatial.device), self._spatial)
        return self._turns[number]

    def _place(self, block: int, viewer: int) -> int:
        """The number by which `viewer` knows `block`: the sink's counts from the front of the window."""
        if block >= self._blocks.sink:
            return block
        return block + max(0, viewer + 1 - self._blocks.window)


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[B, T, heads, channels] each. On a CPU two products and a softmax: there the other's gradient is slow."""
    q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    scores = torch.matmul(q, k.mT).float() * q.shape[-1] ** -0.5
    return torch.matmul(scores.softmax(-1).to(v.dtype), v).transpose(1, 2)


class TextMemory:
    """Attention to one prompt for each stream: rows [B, text_len, text_dim], padding included."""

    def __init__(self, transformer: CausalTransformer, rows: Tensor) -> None:
        self._keys, self._values = transformer.prompt_kv(rows)

    def cross_attention(self, layer: int, attention_of: Attention, q: Tensor) -> Tensor:
        """[B, T, heads, channels]."""
        return attention(attention_of.queries(q), self._keys[layer], self._values[layer])


class SequenceMemory(TextMemory):
    """The `AttentionContext` of a pass over a stretch: its clean blocks, then its noisy ones."""

    def __init__(self, transformer: CausalTransformer, rows: Tensor, stretch: Stretch, window: Window) -> None:
        super().__init__(transformer, rows)
        self._stretch, self._window = stretch, window

    def self_attention(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each block over its window."""
        stretch, window = self._stretch, self._window
        blocks = stretch.size
        queries, keys, values = (
            x.chunk(blocks, dim=1) for x in (attention.queries(q), attention.keys(k), attention.heads_of(v))
        )
        pairs = list(zip(keys, values, strict=True))
        past = dict(zip(stretch.clean, pairs, strict=False))
        done = []
        if stretch.recached:
            first = slice(0, stretch.recached)
            done.append(window.attend_all(*(torch.cat(x[first], 1) for x in (queries, keys, values))))
        for number, query, own in zip(
            (*stretch.clean[stretch.recached :], *stretch.noisy),
            queries[stretch.recached :], pairs[stretch.recached :], strict=True,
        ):  # fmt: skip
            done.append(window.attend(number, query, own, past))
        return torch.cat(done, 1)

    def write_kv(self, layer: int, attention: Attention, k: Tensor, v: Tensor) -> None:
        """Nothing outlives the pass."""


class RolloutMemory(TextMemory):
    """The `AttentionContext` of passes over one block after the other: keeps what the last pass over each made."""

    def __init__(self, transformer: CausalTransformer, rows: Tensor, window: Window) -> None:
        super().__init__(transformer, rows)
        self._window = window
        self._past: list[dict[int, KeyValue]] = [{} for _ in transformer.blocks]
        self.number = 0
        """Of the block whose passes run."""

    def self_attention(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The block over its window."""
        self.write_kv(layer, attention, k, v)
        past = self._past[layer]
        return self._window.attend(self.number, attention.queries(q), past[self.number], past)

    def write_kv(self, layer: int, attention: Attention, k: Tensor, v: Tensor) -> None:
        """In place of what an earlier pass over the block made."""
        self._past[layer][self.number] = attention.keys(k), attention.heads_of(v)

    def advance(self) -> None:
        """Go on to the next block: what no later one can see is forgotten, and the rest carries no gradient."""
        self.number += 1
        visible = set(self._window.past(self.number))
        self._past = [
            {n: (key.detach(), value.detach()) for n, (key, value) in layer.items() if n in visible}
            for layer in self._past
        ]
