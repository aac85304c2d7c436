"""The memory of all streams' keys and values: one reservation, the slab, for each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engines.cache.window import WindowLayout
from engines.errors import PoolFull


class KVRun:
    """Keys and values of one stream's window, for all layers: two tensors of `layout.shape`.

    Keys are rotated: those in a sink slot to their window position under relative RoPE, all others to their
    position in the stream. INT8 keys have fp32 scales of `layout.scales_shape`; only kernels write and read them.
    """

    def __init__(
        self, layout: WindowLayout, device: torch.device, dtype: torch.dtype, *, int8_keys: bool = False
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

    def copy_(self, other: KVRun) -> None:
        """Take over the content of a slab of the same layout."""
        slots = self.layout.window_blocks
        for mine, theirs in zip(self.state(slots).values(), other.state(slots).values(), strict=True):
            mine.copy_(theirs)


class KVPool:
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
        dropped: Callable[[KVRun], None],
        int8_keys: bool = False,
    ) -> None:
        self._limit = limit
        self._device = device
        self._dtype = dtype
        self._int8_keys = int8_keys
        self._kept = kept
        self._dropped = dropped
        self._reserved = 0
        self._idle: list[KVRun] = []

    def take(self, layout: WindowLayout) -> KVRun:
        """A slab with nothing of use in it. Raises PoolFull if it finds no room."""
        for slab in self._idle:
            if slab.layout == layout:
                self._idle.remove(slab)
                return slab
        needed = layout.nbytes(self._dtype, int8_keys=self._int8_keys)
        while self._idle and needed > self._limit - self._reserved:
            self._drop(self._idle.pop(0))
        free = self._limit - self._reserved
        if needed > free:
            raise PoolFull(f"a KV slab needs {needed:,} bytes; of {self._limit:,} there are {free:,} left")
        slab = KVRun(layout, self._device, self._dtype, int8_keys=self._int8_keys)
        self._reserved += needed
        return slab

    def give_back(self, slab: KVRun) -> None:
        """A slab that nobody uses any more."""
        if self._kept:
            self._idle.append(slab)
        else:
            self._drop(slab)

    def _drop(self, slab: KVRun) -> None:
        self._reserved -= slab.nbytes
        self._dropped(slab)
