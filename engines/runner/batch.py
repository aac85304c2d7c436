"""What the kernels of a batch read: rows of integers in device memory in place, so that recorded passes find them.

All of them are one buffer, filled by one copy from pinned memory for each pass. Work queued before still sees what
was there; PyTorch's allocator hands out pinned memory again only when its copy is done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engines.cache.kv_cache import KVCache
from engines.runner.rows import Row, Shape
from engines.runner.slot_choice import queue_steps
from engines.runner.staging import Staging
from engines.wan.fused_ops import AttentionOps
from engines.wan.layers import Attention
from kernels.attention.kv_view import KVPlanes, KVView
from kernels.attention.rope import frame_freqs, frame_pairs
from kernels.attention.slots import RawKeys, RopeFreqs, Slots
from kernels.slot_choice.slot_queue import FIELDS


def window_planes(cache: KVCache) -> KVPlanes:
    """Keys and values of all windows."""
    planes = {name: plane.tensor for name, plane in cache.windows.planes.items()}
    return KVPlanes(planes["keys"], planes["values"], planes.get("key_scales"), planes.get("value_scales"))


def prompt_planes(cache: KVCache) -> KVPlanes:
    """Keys and values of all prompts."""
    planes = cache.prompts.pool.planes
    return KVPlanes(planes["keys"].tensor, planes["values"].tensor)


def raw_plane(cache: KVCache) -> Tensor:
    """Raw keys of all moving slots, [layers, tokens, heads, channels that turn]."""
    return cache.raw.planes["raw_keys"].tensor


class RowBuffer:
    """The integers and levels of a batch of `shape`, as named views of one int32 buffer on `device`."""

    def __init__(self, shape: Shape, layers: int, head_dim: int, device: torch.device) -> None:
        rows, frames = shape.rows, shape.frames
        mapping = (layers, rows, frames) if shape.layered else (rows, frames)
        # Complex numbers are aligned to two words, so they come first.
        shapes = {
            "frame_freqs": (rows, frames, frame_pairs(head_dim), 2), "bounds": (2, rows), "start": (rows,),
            "mapping": mapping, "raw_start": (rows,), "raw_mapping": mapping, "prompt_bounds": (2, rows),
            "last_log": (rows,), "sigma": (rows,), "next_sigma": (rows,),
            "steps": (rows, FIELDS if shape.rolling else 0),
        }  # fmt: skip
        sizes = [math.prod(sizes) for sizes in shapes.values()]
        self._device = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        views = zip(shapes.items(), self._device.split(sizes), strict=True)
        self.views = {name: view.view(sizes) for (name, sizes), view in views}
        self._head_dim = head_dim
        self._layers = range(layers if shape.layered else 1)

    def floats(self, name: str) -> Tensor:
        """A view as fp32."""
        return self.views[name].view(torch.float32)

    def load(self, rows: Sequence[Row]) -> None:
        """Take other rows, by one copy that the host does not wait for."""
        positions = [position for row in rows for position in row.placement.positions]
        freqs = torch.view_as_real(frame_freqs(positions, self._head_dim)).flatten()
        integers = torch.tensor(self._integers(rows), dtype=torch.int32)
        levels = torch.tensor(_levels(rows), dtype=torch.float32)
        steps = queue_steps(rows)
        words = torch.cat([freqs.view(torch.int32), integers, levels.view(torch.int32), steps.flatten()])
        self._device.copy_(words.pin_memory() if self._device.is_cuda else words, non_blocking=True)

    def _integers(self, rows: Sequence[Row]) -> list[int]:
        """In the order of the views."""
        prompts = [row.prompt.run for row in rows]
        return [
            *(begin for begin, _ in (row.bounds for row in rows)),
            *(end for _, end in (row.bounds for row in rows)),
            *(row.kv.window.start for row in rows),
            *(slot for layer in self._layers for row in rows for slot in row.slots(layer)),
            *(0 if row.kv.raw is None else row.kv.raw.start for row in rows),
            *(slot for layer in self._layers for row in rows for slot in row.raw_slots(layer)),
            *(run.start for run in prompts),
            *(run.start + run.tokens for run in prompts),
        ]


def _levels(rows: Sequence[Row]) -> list[float]:
    """Of the prompts' last keys, and of the noise now and then."""
    return [
        *(row.prompt.last_log for row in rows),
        *(row.level.sigma for row in rows),
        *(row.level.next_sigma for row in rows),
    ]


class BatchBuffers:
    """The `AttentionContext` of a batch of one shape, in kernels that read a `RowBuffer`."""

    def __init__(self, ops: AttentionOps, cache: KVCache, shape: Shape, spatial: Tensor, text_len: int) -> None:
        self._ops = ops
        self._rows = RowBuffer(shape, cache.layout.layers, cache.layout.head_dim, cache.device)
        views = self._rows.views
        self._planes = window_planes(cache)
        self._window = KVView(self._planes, views["bounds"], shape.max_tokens)
        last_log = self._rows.floats("last_log")
        self._prompt = KVView(prompt_planes(cache), views["prompt_bounds"], text_len, last_log)
        self._slots = Slots(views["start"], views["mapping"])
        raw_slots = Slots(views["raw_start"], views["raw_mapping"])
        self._raw = RawKeys(raw_plane(cache), raw_slots) if shape.raw else None
        self._freqs = RopeFreqs(torch.view_as_complex(self._rows.floats("frame_freqs")), spatial)
        self._staging = (
            None if shape.rolling is None else Staging(ops, cache, shape, views["start"], views["steps"])
        )
        self._attend = ops.attention(shape.rows)
        self.sigma, self.next_sigma = self._rows.floats("sigma"), self._rows.floats("next_sigma")

    def load(self, rows: Sequence[Row]) -> None:
        """Take other rows of the same shape."""
        self._rows.load(rows)

    def self_attention(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One kernel norms, turns and writes; one attends. Where slots are to be chosen, frames are staged."""
        planes, slots, plane_layer = self._written(layer)
        queries = self._ops.qk_norm_rope(
            q, k, v, attention.norm_q.weight, attention.norm_k.weight, self._freqs, planes, slots, self._raw,
            plane_layer, attention.norm_q.eps,
        )  # fmt: skip
        if self._staging is not None:
            self._staging.place(self._planes, layer)
        return self._attend(queries, self._window, layer)

    def write_kv(self, layer: int, attention: Attention, k: Tensor, v: Tensor) -> None:
        """The same kernel without queries."""
        norm = attention.norm_k
        planes, slots, plane_layer = self._written(layer)
        self._ops.write_kv(k, v, norm.weight, self._freqs, planes, slots, self._raw, plane_layer, norm.eps)
        if self._staging is not None:
            self._staging.place(self._planes, layer)

    def _written(self, layer: int) -> tuple[KVPlanes, Slots, int]:
        """Where a layer's keys and values are written: planes, slots, and a layer of those planes."""
        if self._staging is None:
            return self._planes, self._slots, layer
        return self._staging.planes, self._staging.slots, 0

    def cross_attention(self, layer: int, attention: Attention, q: Tensor) -> Tensor:
        """Padding is one key."""
        queries = attention.heads_of(self._ops.rms_norm(q, attention.norm_q.weight, attention.norm_q.eps))
        return self._ops.prompt_attention(queries, self._prompt, layer)
