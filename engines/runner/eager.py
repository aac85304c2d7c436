"""Passes in PyTorch's own operators: what defines the results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engines.cache.kv_pool import KVRun
from engines.runner.batch import PassInput
from engines.sampling.flow_schedule import FlowSchedule
from engines.wan.layers import Attention
from engines.wan.transformer import AdaLNModulation, CausalTransformer
from kernels.attention.reference import prompt_attention, slab_attention
from kernels.attention.rope import apply_rope


class EagerAttention:
    """The `AttentionContext` of a pass over one or several streams, each with its own slab, prompt and place."""

    def __init__(self, views: Sequence[PassInput]) -> None:
        self._views = views
        self._key_turns = torch.stack([view.turns.keys for view in views])
        self._query_turns = torch.stack([view.turns.queries for view in views])
        self._sink_turns: Tensor | None = None
        if any(view.turns.sink_queries is not None for view in views):
            both = [view.turns for view in views]
            self._sink_turns = torch.stack([t.queries if t.sink_queries is None else t.sink_queries for t in both])

    def write_kv(self, layer: int, attention: Attention, k: Tensor, v: Tensor) -> None:
        """Rotate the pass's keys and put them, with the values, into each stream's slots."""
        turned = apply_rope(attention.keys(k), self._key_turns)
        for view, keys, values in zip(self._views, turned, attention.heads_of(v), strict=True):
            if view.placement.writes:
                view.slab.write(layer, view.placement.slots, keys, values)

    def self_attention(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write, then attend the filled slots of each stream's slab."""
        self.write_kv(layer, attention, k, v)
        queries = attention.queries(q)
        filled = [view.slab.filled(layer, view.placement.filled) for view in self._views]
        return slab_attention(
            apply_rope(queries, self._query_turns),
            [keys for keys, _ in filled],
            [values for _, values in filled],
            sink_queries=None if self._sink_turns is None else apply_rope(queries, self._sink_turns),
            sink_tokens=[view.sink_tokens for view in self._views],
        )

    def cross_attention(self, layer: int, attention: Attention, q: Tensor) -> Tensor:
        """Attend each stream's own prompt."""
        pairs = zip(attention.queries(q), [view.prompt for view in self._views], strict=True)
        rows = [
            prompt_attention(queries, prompt.keys[layer], prompt.values[layer], prompt.log_multiplicity)
            for queries, prompt in pairs
        ]
        return torch.stack(rows)


class EagerPass:
    """A pass in PyTorch's own operators."""

    def __init__(self, transformer: CausalTransformer, context: EagerAttention) -> None:
        self._transformer = transformer
        self._context = context

    def denoise(self, latents: Tensor, modulations: AdaLNModulation) -> Tensor:
        """As the transformer."""
        return self._transformer.denoise(latents, modulations, self._context)

    def write_kv(self, latents: Tensor, modulations: AdaLNModulation) -> None:
        """As the transformer."""
        self._transformer.write_kv(latents, modulations, self._context)


class EagerRunner:
    """Runs passes in PyTorch's own operators: what defines the results."""

    knows_slabs = False
    int8_keys = False

    def __init__(self, transformer: CausalTransformer) -> None:
        self._transformer = transformer
        # CUDA's attention takes no fp32 bias beside bf16 queries.
        self.folds_prompts = transformer.device.type != "cuda"

    def prepare(self, views: Sequence[PassInput]) -> EagerPass:
        """A pass over streams."""
        return EagerPass(self._transformer, EagerAttention(views))

    def flow_step(
        self, schedules: Sequence[FlowSchedule], x: Tensor, flow: Tensor, noise: Tensor | None, step: int
    ) -> Tensor:
        """Stream by stream."""
        rows = zip(schedules, x, flow, strict=True)
        clean = [schedule.predict_clean(noisy, towards, step) for schedule, noisy, towards in rows]
        if noise is None:
            return torch.stack(clean)
        pairs = zip(schedules, clean, noise, strict=True)
        return torch.stack([schedule.add_noise(latents, fresh, step + 1) for schedule, latents, fresh in pairs])

    def forget(self, slab: KVRun) -> None:
        """Nothing is kept."""
