"""Where the streams of a batch keep their keys and values, in device memory, for kernels to read.

A captured graph bakes in the table's addresses and not those it holds, so one graph serves every stream: lending
the table other slabs, or more keys of the same, changes what the next replay reads. Nothing is ever read back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ALIGNMENT_BYTES = 16
"""What kernels load at once."""

NO_SLOT = -1
"""The place of a block whose keys and values are not kept."""


@dataclass(frozen=True, eq=False)
class KVView:
    """What a stream lends: a slab or a prompt, and how much of it is to be attended.

    `keys` and `values` are contiguous [layers, ..., heads, D]; what lies between counts as one run of tokens, of
    which the first `filled` are attended. `sink_queries` score the first `sink` of those. The last one stands for
    equal keys whose number has the logarithm `last_log`. INT8 keys have `key_scales`, contiguous fp32
    [layers, heads, ...]: one for each head of a token.
    """

    keys: Tensor
    values: Tensor
    filled: int
    sink: int = 0
    last_log: float = 0.0
    key_scales: Tensor | None = None

    def __post_init__(self) -> None:
        if self.keys.shape != self.values.shape or self.keys.dim() < 4:
            raise ValueError(f"keys {list(self.keys.shape)} and values {list(self.values.shape)} are no slab")
        for x in (self.keys, self.values):
            if not x.is_contiguous() or x.data_ptr() % ALIGNMENT_BYTES:
                raise ValueError(f"a slab is contiguous and begins at a multiple of {ALIGNMENT_BYTES} bytes")
            if x.stride(0) * x.element_size() % ALIGNMENT_BYTES:
                raise ValueError(f"a layer of {list(x.shape[1:])} is no multiple of {ALIGNMENT_BYTES} bytes")
        if not 0 <= self.sink <= self.filled or not 1 <= self.filled <= self.tokens:
            raise ValueError(f"{self.sink} sink and {self.filled} filled tokens in a slab of {self.tokens}")
        if (self.key_scales is None) != (self.keys.dtype != torch.int8):
            raise ValueError(f"INT8 keys, and no others, have scales; got {self.keys.dtype} and {self.key_scales}")
        if self.key_scales is not None and not self._scales_fit(self.key_scales):
            raise ValueError(
                f"scales {list(self.key_scales.shape)} in {self.key_scales.dtype} on {self.key_scales.device} "
                f"do not fit keys {list(self.keys.shape)} on {self.keys.device}"
            )

    def _scales_fit(self, scales: Tensor) -> bool:
        layers, *between, heads, _ = self.keys.shape
        like_keys = list(scales.shape) == [layers, heads, *between] and scales.device == self.keys.device
        return like_keys and scales.is_contiguous() and scales.dtype == torch.float32

    @property
    def tokens(self) -> int:
        """That there is room for."""
        return self.keys[0, ..., 0, 0].numel()

    def attended(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values [filled, heads, D] and scales [heads, filled] of a layer: views."""
        scales = None if self.key_scales is None else self.key_scales[layer].flatten(1)[:, : self.filled]
        return (
            self.keys[layer].flatten(0, -3)[: self.filled],
            self.values[layer].flatten(0, -3)[: self.filled],
            scales,
        )


class _Facts(NamedTuple):
    """What the device is told of something lent, by the names of the table's tensors."""

    keys: int
    values: int
    key_scales: int
    layer_strides: int
    scale_strides: int
    filled: int
    sink: int
    last_log: float

    @classmethod
    def of(cls, lent: KVView) -> _Facts:
        scales = lent.key_scales
        return cls(
            lent.keys.data_ptr(), lent.values.data_ptr(), 0 if scales is None else scales.data_ptr(),
            lent.keys.stride(0), 0 if scales is None else scales.stride(0), lent.filled, lent.sink, lent.last_log,
        )  # fmt: skip


class KVViewTable:
    """Slabs of a batch, one entry for each stream in every tensor [B].

    `keys`, `values` and `key_scales` are int64 addresses of layer 0, `layer_strides` int64 the elements of one
    layer's keys, `scale_strides` of its scales; `filled` and `sink` are int32, `last_log` fp32. An operator that
    writes through `keys` and `values` declares that it mutates them, which orders it in a compiled graph.

    The host keeps what was lent in `lent`: so that it stays allocated, and for the reference.
    """

    def __init__(self, lent: Sequence[KVView], device: torch.device) -> None:
        _check_alike(lent)
        self.lent = list(lent)
        facts = zip(*(_Facts.of(row) for row in lent), strict=True)
        dtypes = [torch.int64] * 5 + [torch.int32] * 2 + [torch.float32]
        columns = [
            torch.tensor(fact, dtype=dtype, device=device) for fact, dtype in zip(facts, dtypes, strict=True)
        ]
        self.keys, self.values, self.key_scales, self.layer_strides, self.scale_strides = columns[:5]
        self.filled, self.sink, self.last_log = columns[5:]

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of what is told."""
        return (
            self.keys, self.values, self.key_scales, self.layer_strides, self.scale_strides,
            self.filled, self.sink, self.last_log,
        )  # fmt: skip

    @property
    def most_filled(self) -> int:
        """Keys of the stream that attends most."""
        return max(lent.filled for lent in self.lent)

    def lend(self, row: int, lent: KVView) -> None:
        """Put something else in a row, without waiting for the device; work queued before still sees the old.

        Raises:
            ValueError: it differs from the batch's in heads, channels or dtype.

        """
        _check_alike([*self.lent, lent])
        before, self.lent[row] = self.lent[row], lent
        for column, old, new in zip(self.columns, _Facts.of(before), _Facts.of(lent), strict=True):
            if new != old:
                column[row].fill_(new)


def _check_alike(lent: Sequence[KVView]) -> None:
    kinds = {(tuple(x.keys.shape[-2:]), x.keys.dtype, x.values.dtype, x.keys.device) for x in lent}
    if len(kinds) != 1:
        raise ValueError(f"streams of a batch have the same heads, channels, dtypes and device; got {kinds}")
