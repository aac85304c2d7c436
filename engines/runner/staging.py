"""Frames whose slots are chosen from their keys: they are staged, and copied from there."""

from __future__ import annotations

import torch
from torch import Tensor

from engines.cache.kv_cache import KVCache
from engines.runner.rows import Shape
from engines.runner.slot_choice import slot_queues
from engines.wan.fused_ops import AttentionOps
from kernels.attention.kv_view import KVPlanes
from kernels.attention.slots import Slots


class Staging:
    """One layer's keys and values of a batch of `shape`, and their way into the slots chosen for them."""

    def __init__(self, ops: AttentionOps, cache: KVCache, shape: Shape, start: Tensor, steps: Tensor) -> None:
        assert shape.rolling is not None
        self._ops = ops
        self._queues = slot_queues(cache, shape.rolling, steps)
        self._frames = shape.rows * shape.frames
        tokens = shape.grid.rows * shape.grid.columns
        self.planes = _like(cache, self._frames * tokens)
        rows = torch.arange(shape.rows, dtype=torch.int32, device=cache.device)
        frames = torch.arange(shape.frames, dtype=torch.int32, device=cache.device)
        self.slots = Slots(rows * (shape.frames * tokens), frames.repeat(shape.rows, 1))
        self._chosen = Slots(start, torch.empty_like(self.slots.mapping))

    def place(self, planes: KVPlanes, layer: int) -> None:
        """Choose the slots in a layer, and copy the frames there."""
        queues = self._queues
        tested = queues.rule.threshold is not None
        means = self._ops.frame_means(self.planes, self._frames) if tested else queues.no_means
        self._ops.choose_slots(queues, means, layer, self._chosen.mapping)
        self._ops.copy_slots(self.planes, planes, self._chosen, layer)


def _like(cache: KVCache, tokens: int) -> KVPlanes:
    """Planes of one layer for so many tokens, kept as the pool keeps them."""

    def of(name: str) -> Tensor | None:
        plane = cache.windows.planes.get(name)
        if plane is None:
            return None
        sizes = list(plane.tensor.shape)
        sizes[0], sizes[plane.token_dim] = 1, tokens
        return plane.tensor.new_empty(sizes)

    keys, values = of("keys"), of("values")
    assert keys is not None
    assert values is not None
    return KVPlanes(keys, values, of("key_scales"), of("value_scales"))
