"""Passes in fused kernels, which read from device memory where a stream's keys are; replayed from graphs.

A set of buffers serves all passes of one shape. Between two passes other streams are put into it, or the same ones
further on: what a pass reads stays in place, and a recorded pass is good for any stream.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from engines.device.cuda_graph import Graphed, Recorder
from engines.errors import ConfigError
from engines.kv_slab import KVSlab
from engines.memory import PromptMemory, StreamView
from engines.sampling.flow_schedule import FlowSchedule
from engines.wan.kernel_ops import AttentionOps, layer_ops
from engines.wan.transformer import Attention, CausalTransformer, LayerOps, Modulations
from kernels.attention.kv_view import KVView, KVViewTable
from kernels.attention.qk_norm_rope import NO_SLOT, Turns
from kernels.dispatch import KernelBackends
from kernels.flow_step import flow_step, flow_step_reference


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


class PassBuffers:
    """What passes over B streams with as many blocks each read of them: a `Memory` on device memory in place."""

    def __init__(self, ops: AttentionOps, views: Sequence[StreamView]) -> None:
        self._ops = ops
        device = views[0].slab.keys.device
        self._turns = Turns(*(torch.stack(turns) for turns in _turns(views)))
        self._places_known = [_places(view) for view in views]
        self._places = torch.tensor(self._places_known, dtype=torch.int32, device=device)
        self._slabs = KVViewTable([_lent(view) for view in views], device)
        self._prompts = KVViewTable([_lent_prompt(view.prompt) for view in views], device)
        self._two_queries = _two_queries(views)

    def lend(self, views: Sequence[StreamView]) -> None:
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
    def let_go(self, slab: KVSlab) -> None:
        """Keep `slab` in memory no longer; until the next `lend` no pass can be run."""
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

    def attend(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One kernel norms, turns and writes; one attends."""
        queries = self._ops.qk_norm_rope(
            q, k, v, attention.norm_q.weight, attention.norm_k.weight, self._pass_turns, self._slabs, self._places,
            layer, attention.norm_q.eps,
        )  # fmt: skip
        attend = self._ops.attention(len(self._slabs.lent))
        return attend(queries.stream, self._slabs, layer, sink_queries=queries.sink)

    def remember(self, layer: int, attention: Attention, k: Tensor, v: Tensor) -> None:
        """The same kernel without queries."""
        norm = attention.norm_k
        turns = self._turns.keys
        self._ops.write_kv(k, v, norm.weight, turns, self._slabs, self._places, layer, norm.eps)

    def attend_prompt(self, layer: int, attention: Attention, q: Tensor) -> Tensor:
        """Padding is one key."""
        queries = attention.heads_of(self._ops.rms_norm(q, attention.norm_q.weight, attention.norm_q.eps))
        return self._ops.prompt_attention(queries, self._prompts, layer)

    @property
    def _pass_turns(self) -> Turns:
        return self._turns if self._two_queries else self._turns._replace(sink_queries=None)


class KernelPass:
    """A pass in kernels. One block's is replayed from a graph where there are graphs: longer ones are rare."""

    def __init__(self, passes: KernelPasses, buffers: PassBuffers, *, graphed: bool) -> None:
        self.buffers = buffers
        # No methods of this object, which would keep itself and its recordings in memory.
        self._denoise = partial(_denoise, passes.transformer, passes.layer_ops, buffers)
        self._remember = partial(_remember, passes.transformer, passes.layer_ops, buffers)
        self.denoising = Graphed[Baked](self._denoise, passes.record) if passes.record and graphed else None
        self.remembering = Graphed[Baked](self._remember, passes.record) if passes.record and graphed else None

    def denoise(self, latents: Tensor, modulations: Modulations) -> Tensor:
        """The flow; from a graph, only until the next pass."""
        if self.denoising is None:
            return self._denoise(latents, *modulations)
        flow = self.denoising(self.buffers.baked, latents, *modulations)
        assert flow is not None
        return flow

    def remember(self, latents: Tensor, modulations: Modulations) -> None:
        """Keys and values only."""
        if self.remembering is None:
            self._remember(latents, *modulations)
        else:
            self.remembering(self.buffers.baked, latents, *modulations)

    def forget(self, slab: KVSlab) -> None:
        """Let go of `slab`, and drop what was recorded for its address: recordings for others stay."""
        self.buffers.let_go(slab)
        for graphed in (self.denoising, self.remembering):
            if graphed is not None:
                graphed.forget(lambda baked: baked.knows(slab.keys.data_ptr()))


class KernelPasses:
    """Runs passes in the kernels of `backends`; those of one block are recorded by `record` if there is one."""

    folds_prompts = True

    def __init__(self, transformer: CausalTransformer, backends: KernelBackends, record: Recorder | None) -> None:
        if record is not None and not backends.supports_cuda_graphs:
            raise ConfigError(
                "graphs need qk_norm_rope and prompt_attention to be triton: others know only one slab; "
                f"{backends}"
            )
        self.transformer = transformer
        self.record = record
        self.layer_ops = layer_ops(backends)
        self._attention_ops = AttentionOps.of(backends, transformer.device)
        self.knows_slabs = record is not None
        self.int8_keys = backends.keys == "int8"
        self._flow_step = flow_step if backends.flow_step == "triton" else flow_step_reference
        self._passes: dict[Hashable, KernelPass] = {}

    def over(self, views: Sequence[StreamView]) -> KernelPass:
        """A pass over streams; of use until the next call."""
        blocks = len(views[0].placement.slots)
        key = len(views), blocks, views[0].picture
        if key in self._passes:
            self._passes[key].buffers.lend(views)
        else:
            buffers = PassBuffers(self._attention_ops, views)
            self._passes[key] = KernelPass(self, buffers, graphed=blocks == 1)
        return self._passes[key]

    def advance(
        self, schedules: Sequence[FlowSchedule], x: Tensor, flow: Tensor, noise: Tensor | None, step: int
    ) -> Tensor:
        """One kernel for all streams."""
        now = [schedule.sigmas[step] for schedule in schedules]
        then = [0.0 if noise is None else schedule.sigmas[step + 1] for schedule in schedules]
        levels = _filled(now, x.device), _filled(then, x.device)
        return self._flow_step(x, flow, x if noise is None else noise, *levels)

    def forget(self, slab: KVSlab) -> None:
        """Keep neither the slab in memory nor recordings that know its address."""
        for made in self._passes.values():
            made.forget(slab)


def _denoise(
    transformer: CausalTransformer, ops: LayerOps, buffers: PassBuffers, latents: Tensor, *modulations: Tensor
) -> Tensor:
    return transformer.denoise(latents, Modulations(*modulations), buffers, ops)


def _remember(
    transformer: CausalTransformer, ops: LayerOps, buffers: PassBuffers, latents: Tensor, *modulations: Tensor
) -> None:
    transformer.remember(latents, Modulations(*modulations), buffers, ops)


def _turns(views: Sequence[StreamView]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of keys, queries and sink queries; a stream without sink queries of its own gets its queries."""
    turns = [view.turns for view in views]
    sinks = [t.queries if t.sink_queries is None else t.sink_queries for t in turns]
    return [t.keys for t in turns], [t.queries for t in turns], sinks


def _two_queries(views: Sequence[StreamView]) -> bool:
    return any(view.sink_tokens > 0 for view in views)


def _places(view: StreamView) -> list[int]:
    """The slab's token at which each block of the pass begins."""
    placement, tokens = view.placement, view.slab.layout.block_tokens
    return [slot * tokens if placement.writes else NO_SLOT for slot in placement.slots]


def _lent(view: StreamView) -> KVView:
    filled = view.placement.filled * view.slab.layout.block_tokens
    return KVView(view.slab.keys, view.slab.values, filled, view.sink_tokens, key_scales=view.slab.key_scales)


def _nothing_like(lent: KVView) -> KVView:
    """A token in one layer that can stand in a table for `lent`."""
    shape = (1, 1, *lent.keys.shape[-2:])
    scales = None if lent.key_scales is None else lent.key_scales.new_empty(1, shape[-2], 1)
    return KVView(lent.keys.new_empty(shape), lent.values.new_empty(shape), filled=1, key_scales=scales)


def _lent_prompt(prompt: PromptMemory) -> KVView:
    return KVView(prompt.keys, prompt.values, prompt.keys.shape[1], last_log=prompt.last_log)


def _filled(values: Sequence[float], device: torch.device) -> Tensor:
    """fp32 [B] on `device`, without waiting for a copy."""
    return torch.cat([torch.full((1,), value, device=device) for value in values])
