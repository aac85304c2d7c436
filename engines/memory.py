"""What streams lend the transformer for one pass: their slabs, their prompts and their places in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from engines.config.stream import StreamConfig
from engines.kv_slab import KVSlab, Placement
from engines.text.prompt import Prompt
from engines.wan.transformer import Attention, CausalTransformer
from kernels.attention.reference import prompt_attention, slab_attention
from kernels.attention.rope import RopeTable, apply_rope


@dataclass(frozen=True)
class PromptMemory:
    """Keys and values of one prompt in every layer: [layers, N, heads, channels].

    LongLive attends all `text_len` positions, and those behind the prompt's own tokens are all equal. Folded, they
    are one key, the last, and `last_log` is the logarithm of their number: also the last of `log_multiplicity`
    [N] fp32, which is None where nothing is folded.
    """

    keys: Tensor
    values: Tensor
    log_multiplicity: Tensor | None
    last_log: float = 0.0

    @classmethod
    def of(cls, transformer: CausalTransformer, prompt: Prompt, *, folded: bool = True) -> Self:
        """What `transformer` reads in `prompt`; `folded` if attention can weigh keys."""
        rows = prompt.rows
        padding = transformer.config.text_len - rows.shape[0]
        if padding == 0:
            return cls(*transformer.read_prompt(rows), None)
        keys, values = transformer.read_prompt(torch.cat([rows, rows.new_zeros(1, rows.shape[1])]))
        if not folded:
            return cls(_repeat_last(keys, padding), _repeat_last(values, padding), None)
        log_multiplicity = torch.zeros(rows.shape[0] + 1, device=keys.device)
        log_multiplicity[-1].fill_(math.log(padding))
        return cls(keys, values, log_multiplicity, math.log(padding))


def _repeat_last(x: Tensor, times: int) -> Tensor:
    """[layers, N, ...] with the last of the N there `times` times."""
    return torch.cat([x[:, :-1], x[:, -1:].expand(-1, times, -1, -1)], dim=1)


class PassTurns(NamedTuple):
    """RoPE turns of a pass, each [tokens, channels / 2]. `sink_queries` where they differ from `queries`."""

    keys: Tensor
    queries: Tensor
    sink_queries: Tensor | None

    @classmethod
    def of(cls, grid: RopeTable, placement: Placement, config: StreamConfig) -> PassTurns:
        """Absolute RoPE knows stream positions only; relative RoPE counts the sink's by the window."""
        stream = grid.freqs_cis(_frames(placement.first_block, placement, config))
        rolled = placement.first_block != placement.window_block
        if config.rope == "absolute" or not rolled or config.sink_blocks == 0:
            return cls(stream, stream, None)
        window = grid.freqs_cis(_frames(placement.window_block, placement, config))
        in_sink = sum(slot < config.sink_blocks for slot in placement.slots) * config.block_tokens
        return cls(torch.cat([window[:in_sink], stream[in_sink:]]), stream, window)


def _frames(first_block: int, placement: Placement, config: StreamConfig) -> range:
    start = first_block * config.block_frames
    return range(start, start + len(placement.slots) * config.block_frames)


@dataclass(frozen=True)
class StreamView:
    """One stream's side of a pass. `picture` is the height and width of its pictures."""

    slab: KVSlab
    prompt: PromptMemory
    placement: Placement
    turns: PassTurns
    picture: tuple[int, int]

    @property
    def sink_tokens(self) -> int:
        """Keys that the sink queries score; none while there is no difference."""
        layout = self.slab.layout
        return 0 if self.turns.sink_queries is None else layout.sink_blocks * layout.block_tokens


class SlabMemory:
    """The `Memory` of a pass over one or several streams, each with its own slab, prompt and place."""

    def __init__(self, views: Sequence[StreamView]) -> None:
        self._views = views
        self._key_turns = torch.stack([view.turns.keys for view in views])
        self._query_turns = torch.stack([view.turns.queries for view in views])
        self._sink_turns: Tensor | None = None
        if any(view.turns.sink_queries is not None for view in views):
            both = [view.turns for view in views]
            self._sink_turns = torch.stack([t.queries if t.sink_queries is None else t.sink_queries for t in both])

    def remember(self, layer: int, attention: Attention, k: Tensor, v: Tensor) -> None:
        """Rotate the pass's keys and put them, with the values, into each stream's slots."""
        turned = apply_rope(attention.keys(k), self._key_turns)
        for view, keys, values in zip(self._views, turned, attention.heads_of(v), strict=True):
            if view.placement.writes:
                view.slab.write(layer, view.placement.slots, keys, values)

    def attend(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write, then attend the filled slots of each stream's slab."""
        self.remember(layer, attention, k, v)
        queries = attention.queries(q)
        filled = [view.slab.filled(layer, view.placement.filled) for view in self._views]
        return slab_attention(
            apply_rope(queries, self._query_turns),
            [keys for keys, _ in filled],
            [values for _, values in filled],
            sink_queries=None if self._sink_turns is None else apply_rope(queries, self._sink_turns),
            sink_tokens=[view.sink_tokens for view in self._views],
        )

    def attend_prompt(self, layer: int, attention: Attention, q: Tensor) -> Tensor:
        """Attend each stream's own prompt."""
        pairs = zip(attention.queries(q), [view.prompt for view in self._views], strict=True)
        rows = [
            prompt_attention(queries, prompt.keys[layer], prompt.values[layer], prompt.log_multiplicity)
            for queries, prompt in pairs
        ]
        return torch.stack(rows)
