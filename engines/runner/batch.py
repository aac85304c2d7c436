"""What a pass over a batch of streams reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from engines.cache.kv_pool import KVRun
from engines.cache.positions import PassPositions
from engines.cache.prompt_kv import PromptKV
from engines.cache.window import SlotMapping
from engines.wan.layers import Attention
from kernels.attention.kv_view import NO_SLOT, KVView, KVViewTable
from kernels.attention.rope import Turns

if TYPE_CHECKING:
    # Kernels bring Triton, which not every machine has.
    from engines.wan.fused_ops import AttentionOps


@dataclass(frozen=True)
class PassInput:
    """One stream's side of a pass. `picture` is the height and width of its pictures."""

    slab: KVRun
    prompt: PromptKV
    placement: SlotMapping
    turns: PassPositions
    picture: tuple[int, int]

    @property
    def sink_tokens(self) -> int:
        """Keys that the sink queries score; none while there is no difference."""
        layout = self.slab.layout
        return 0 if self.turns.sink_queries is None else layout.sink_blocks * layout.block_tokens


class ToldSlab(NamedTuple):
    """What a library is told of a slab by the host: where its keys begin, and how many there are."""

    address: int
    filled: int
    sink: int


@dataclass(frozen=True)
class Baked:
    """What kernels are launched with that is not read from the buffers, and so differs between recordings.

    Kernels that find slabs by themselves are cut by `most_filled`; others are launched for `slabs`.
    """

    two_queries: bool
    most_filled: int
    slabs: tuple[ToldSlab, ...] = ()

    def knows(self, address: int) -> bool:
        """Whether it is good only for the slab whose keys begin at `address`, or for that among others."""
        return any(slab.address == address for slab in self.slabs)


class BatchBuffers:
    """What passes over B streams with as many blocks each read: an `AttentionContext` on memory that stays put."""

    def __init__(self, ops: AttentionOps, views: Sequence[PassInput]) -> None:
        self._ops = ops
        device = views[0].slab.keys.device
        self._turns = Turns(*(torch.stack(turns) for turns in _turns(views)))
        self._places_known = [_places(view) for view in views]
        self._places = torch.tensor(self._places_known, dtype=torch.int32, device=device)
        self._slabs = KVViewTable([_lent(view) for view in views], device)
        self._prompts = KVViewTable([_lent_prompt(view.prompt) for view in views], device)
        self._two_queries = _two_queries(views)

    def load(self, views: Sequence[PassInput]) -> None:
        """Take other streams, or the same at another place. Work queued before still sees the old."""
        for turns, new in zip(self._turns, _turns(views), strict=True):
            assert turns is not None
            torch.stack(new, out=turns)
        for row, view in enumerate(views):
            self._slabs.lend(row, _lent(view))
            self._prompts.lend(row, _lent_prompt(view.prompt))
            for column, place in enumerate(_places(view)):
                if self._places_known[row][column] != place:
                    self._places[row, column].fill_(place)
            self._places_known[row] = _places(view)
        self._two_queries = _two_queries(views)

    @torch.inference_mode()
    def let_go(self, slab: KVRun) -> None:
        """Keep `slab` in memory no longer; until the next `load` no pass can be run."""
        for row, lent in enumerate(self._slabs.lent):
            if lent.keys is slab.keys:
                self._slabs.lend(row, _nothing_like(lent))

    @property
    def baked(self) -> Baked:
        """For the streams that are lent."""
        lent, most_filled = self._slabs.lent, self._slabs.most_filled
        if self._ops.finds_slabs(len(lent)):
            return Baked(self._two_queries, most_filled)
        slabs = tuple(ToldSlab(x.keys.data_ptr(), x.filled, x.sink) for x in lent)
        return Baked(self._two_queries, most_filled, slabs)

    def self_attention(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One kernel norms, turns and writes; one attends."""
        queries = self._ops.qk_norm_rope(
            q, k, v, attention.norm_q.weight, attention.norm_k.weight, self._pass_turns, self._slabs, self._places,
            layer, attention.norm_q.eps,
        )  # fmt: skip
        attend = self._ops.attention(len(self._slabs.lent))
        return attend(queries.stream, self._slabs, layer, sink_queries=queries.sink)

    def write_kv(self, layer: int, attention: Attention, k: Tensor, v: Tensor) -> None:
        """The same kernel without queries."""
        norm = attention.norm_k
        turns = self._turns.keys
        self._ops.write_kv(k, v, norm.weight, turns, self._slabs, self._places, layer, norm.eps)

    def cross_attention(self, layer: int, attention: Attention, q: Tensor) -> Tensor:
        """Padding is one key."""
        queries = attention.heads_of(self._ops.rms_norm(q, attention.norm_q.weight, attention.norm_q.eps))
        return self._ops.prompt_attention(queries, self._prompts, layer)

    @property
    def _pass_turns(self) -> Turns:
        return self._turns if self._two_queries else self._turns._replace(sink_queries=None)


def _turns(views: Sequence[PassInput]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of keys, queries and sink queries; a stream without sink queries of its own gets its queries."""
    turns = [view.turns for view in views]
    sinks = [t.queries if t.sink_queries is None else t.sink_queries for t in turns]
    return [t.keys for t in turns], [t.queries for t in turns], sinks


def _two_queries(views: Sequence[PassInput]) -> bool:
    return any(view.sink_tokens > 0 for view in views)


def _places(view: PassInput) -> list[int]:
    """The slab's token at which each block of the pass begins."""
    placement, tokens = view.placement, view.slab.layout.block_tokens
    return [slot * tokens if placement.writes else NO_SLOT for slot in placement.slots]


def _lent(view: PassInput) -> KVView:
    filled = view.placement.filled * view.slab.layout.block_tokens
    return KVView(view.slab.keys, view.slab.values, filled, view.sink_tokens, key_scales=view.slab.key_scales)


def _nothing_like(lent: KVView) -> KVView:
    """A token in one layer that can stand in a table for `lent`."""
    shape = (1, 1, *lent.keys.shape[-2:])
    scales = None if lent.key_scales is None else lent.key_scales.new_empty(1, shape[-2], 1)
    return KVView(lent.keys.new_empty(shape), lent.values.new_empty(shape), filled=1, key_scales=scales)


def _lent_prompt(prompt: PromptKV) -> KVView:
    return KVView(prompt.keys, prompt.values, prompt.keys.shape[1], last_log=prompt.last_log)
