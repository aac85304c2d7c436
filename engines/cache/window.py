"""The slots of a KV slab: which blocks of a stream lie in them.

    slot      0 .. sink-1            sink .. window-1
    holds     the frame sink         the recent blocks, a ring
    block b   slot b                 slot sink + (b - sink) % ring

A new block overwrites the slot it evicts. Nothing is moved: attention does not depend on key order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from engines.config.networks import TransformerConfig
from engines.config.stream import StreamConfig


@dataclass(frozen=True)
class SlotMapping:
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
class WindowLayout:
    """Shape of a slab, and the slots of blocks in it. A pure function of the block number: it holds no state."""

    layers: int
    heads: int
    head_dim: int
    block_tokens: int
    sink_blocks: int
    window_blocks: int

    @classmethod
    def of(cls, transformer: TransformerConfig, stream: StreamConfig) -> WindowLayout:
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

    def placement(self, block: int, *, repeat: bool) -> SlotMapping:
        """Where a pass over the next block goes; `repeat` for every pass but the block's first.

        LongLive never rewrites a sink slot on a repeat, except at the very start of a stream: a sink of several
        blocks keeps, for all but the first of them, what their first pass wrote (longlive.md, section 2).
        """
        filled = min(block + 1, self.window_blocks)
        frozen = repeat and 0 < block < self.sink_blocks
        return SlotMapping(block, (self.slot(block),), filled, writes=not frozen)

    def recache_placement(self, next_block: int, *, keep_sink: bool) -> SlotMapping:
        """Where a KV recache before `next_block` goes: over the window, or over all but its sink.

        Until the window has rolled a recache rewrites everything, the sink too. Afterwards, with `keep_sink`,
        the sink's blocks need not be computed (the 9-frame form); without, the slots of the sink receive the
        oldest blocks of the window.
        """
        if next_block <= self.window_blocks:
            return SlotMapping(0, tuple(range(next_block)), next_block)
        ring = tuple(self.slot(block) for block in range(next_block - self.ring_blocks, next_block))
        if keep_sink:
            return SlotMapping(next_block - self.ring_blocks, ring, self.window_blocks)
        slots = (*range(self.sink_blocks), *ring)
        return SlotMapping(next_block - self.window_blocks, slots, self.window_blocks)
