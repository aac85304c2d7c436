"""The KV slab: one reservation per stream for the keys and values of its window, and the order kept in it.

    slot      0 .. sink-1            sink .. window-1
    holds     the frame sink         the recent blocks, a ring
    block b   slot b                 slot sink + (b - sink) % ring

A new block overwrites the slot it evicts. Nothing is moved: attention does not depend on key order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engines.config.networks import TransformerConfig
from engines.config.stream import StreamConfig
from engines.errors import SlabsFull


@dataclass(frozen=True)
class Placement:
    """Where the blocks of one pass lie.

    `first_block` is the stream's number of the first one and `slots` has a slot for each. The pass attends the
    slots 0..`filled`-1, in which its own blocks are the newest, except that a recache may include the sink.
    `writes` is false where the slab keeps what it has.
    """

    first_block: int
    slots: tuple[int, ...]
    filled: int
    writes: bool = True

    @property
    def window_block(self) -> int:
        """Position of the first block in the window."""
        return self.filled - len(self.slots)


@dataclass(frozen=True)
class SlabLayout:
    """Shape of a slab, and the slots of blocks in it. A pure function of the block number: it holds no state."""

    layers: int
    heads: int
    head_dim: int
    block_tokens: int
    sink_blocks: int
    window_blocks: int

    @classmethod
    def of(cls, transformer: TransformerConfig, stream: StreamConfig) -> SlabLayout:
        """The slab that a stream of this model needs."""
        return cls(
            transformer.layers, transformer.heads, transformer.head_dim,
            stream.block_tokens, stream.sink_blocks, stream.window_blocks,
        )  # fmt: skip

    @property
    def ring_blocks(self) -> int:
        """Slots behind the sink."""
        return self.window_blocks - self.sink_blocks

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the keys, and of the values: layers, slots, tokens of a block, heads, channels of a head."""
        return (self.layers, self.window_blocks, self.block_tokens, self.heads, self.head_dim)

    @property
    def scales_shape(self) -> tuple[int, ...]:
        """Of the scales of INT8 keys: layers, heads, slots, tokens of a block."""
        return (self.layers, self.heads, self.window_blocks, self.block_tokens)

    def nbytes(self, dtype: torch.dtype, *, int8_keys: bool = False) -> int:
        """Bytes of a slab, keys with their scales if they have any, and values."""
        elements = math.prod(self.shape)
        if int8_keys:
            return elements * (1 + dtype.itemsize) + math.prod(self.scales_shape) * torch.float32.itemsize
        return 2 * elements * dtype.itemsize

    def slot(self, block: int) -> int:
        """The slot in which `block` lies, or will."""
        if block < self.sink_blocks:
            return block
        return self.sink_blocks + (block - self.sink_blocks) % self.ring_blocks

    def placement(self, block: int, *, repeat: bool) -> Placement:
        """Where a pass over the next block goes; `repeat` for every pass but the block's first.

        LongLive never rewrites a sink slot on a repeat, except at the very start of a stream: a sink of several
        blocks keeps, for all but the first of them, what their first pass wrote (longlive.md, section 2).
        """
        filled = min(block + 1, self.window_blocks)
        frozen = repeat and 0 < block < self.sink_blocks
        return Placement(block, (self.slot(block),), filled, writes=not frozen)

    def recache_placement(self, next_block: int, *, keep_sink: bool) -> Placement:
        """Where a KV recache before `next_block` goes: over the window, or over all but its sink.

        Until the window has rolled a recache rewrites everything, the sink too. Afterwards, with `keep_sink`,
        the sink's blocks need not be computed (the 9-frame form); without, the slots of the sink receive the
        oldest blocks of the window.
        """
        if next_block <= self.window_blocks:
            return Placement(0, tuple(range(next_block)), next_block)
        ring = tuple(self.slot(block) for block in range(next_block - self.ring_blocks, next_block))
        if keep_sink:
            return Placement(next_block - self.ring_blocks, ring, self.window_blocks)
        slots = (*range(self.sink_blocks), *ring)
        return Placement(next_block - self.window_blocks, slots, self.window_blocks)


class KVSlab:
    """Keys and values of one stream's window, for all layers: two tensors of `layout.shape`.

    Keys are rotated: those in a sink slot to their window position under relative RoPE, all others to their
    position in the stream. INT8 keys have fp32 scales of `layout.scales_shape`; only kernels write and read them.
    """

    def __init__(
        self, layout: SlabLayout, device: torch.device, dtype: torch.dtype, *, int8_keys: bool = False
    ) -> None:
        self.layout = layout
        self.keys = torch.empty(layout.shape, device=device, dtype=torch.int8 if int8_keys else dtype)
        self.values = torch.empty(layout.shape, device=device, dtype=dtype)
        self.key_scales = torch.empty(layout.scales_shape, device=device) if int8_keys else None

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return sum(x.nbytes for x in self.state(self.layout.window_blocks).values())

    def state(self, slots: int) -> dict[str, Tensor]:
        """All there is in the first `slots` slots, by name: views."""
        kept = {"keys": self.keys[:, :slots], "values": self.values[:, :slots]}
        return kept if self.key_scales is None else kept | {"key_scales": self.key_scales[:, :, :slots]}

    def write(self, layer: int, slots: tuple[int, ...], keys: Tensor, values: Tensor) -> None:
        """Put keys and values [blocks * block tokens, heads, channels] into their slots."""
        tokens = self.layout.block_tokens
        for slot, k, v in zip(slots, keys.split(tokens), values.split(tokens), strict=True):
            self.keys[layer, slot].copy_(k)
            self.values[layer, slot].copy_(v)

    def filled(self, layer: int, slots: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `slots` slots as they lie, [tokens, heads, channels]: views."""
        return self.keys[layer, :slots].flatten(0, 1), self.values[layer, :slots].flatten(0, 1)

    def copy_(self, other: KVSlab) -> None:
        """Take over the content of a slab of the same layout."""
        slots = self.layout.window_blocks
        for mine, theirs in zip(self.state(slots).values(), other.state(slots).values(), strict=True):
            mine.copy_(theirs)


class SlabPool:
    """The slabs of all streams, of `limit` bytes together.

    With `kept` a slab that was given back waits for the next stream of its layout, so that what knows its address
    stays of use; it makes way when there is no other room, and `dropped` is told.
    """

    def __init__(
        self,
        limit: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        kept: bool,
        dropped: Callable[[KVSlab], None],
        int8_keys: bool = False,
    ) -> None:
        self._limit = limit
        self._device = device
        self._dtype = dtype
        self._int8_keys = int8_keys
        self._kept = kept
        self._dropped = dropped
        self._reserved = 0
        self._idle: list[KVSlab] = []

    def take(self, layout: SlabLayout) -> KVSlab:
        """A slab with nothing of use in it. Raises SlabsFull if it finds no room."""
        for slab in self._idle:
            if slab.layout == layout:
                self._idle.remove(slab)
                return slab
        needed = layout.nbytes(self._dtype, int8_keys=self._int8_keys)
        while self._idle and needed > self._limit - self._reserved:
            self._drop(self._idle.pop(0))
        free = self._limit - self._reserved
        if needed > free:
            raise SlabsFull(f"a KV slab needs {needed:,} bytes; of {self._limit:,} there are {free:,} left")
        slab = KVSlab(layout, self._device, self._dtype, int8_keys=self._int8_keys)
        self._reserved += needed
        return slab

    def give_back(self, slab: KVSlab) -> None:
        """A slab that nobody uses any more."""
        if self._kept:
            self._idle.append(slab)
        else:
            self._drop(slab)

    def _drop(self, slab: KVSlab) -> None:
        self._reserved -= slab.nbytes
        self._dropped(slab)
