"""What a batch of passes addresses in a KV pool: the pool's planes, and integers that say where each row lies.

    plane   [layers, tokens, ...]   one allocation for all streams; a stream has a run of it
    row     start                   where its run begins, a token of the pool
            bounds                  tokens of the pool from which and up to which it attends
    slot    F tokens of a run       where a latent frame lies; slot s begins at token start + s * F

Integers lie in device memory in place, so what a recorded graph reads follows them to any run at any fill.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ALIGNMENT_BYTES = 16
"""What kernels load at once."""

NO_SLOT = -1
"""In a slot mapping: a frame whose keys and values are not written."""


@dataclass(frozen=True, eq=False)
class KVPlanes:
    """Keys and values of a pool, contiguous [layers, tokens, heads, D].

    INT8 keys have `key_scales`, and INT8 values `value_scales`, contiguous fp32 [layers, heads, tokens]: one for
    each head of a token.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit.

    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    def __post_init__(self) -> None:
        if self.keys.shape != self.values.shape or self.keys.dim() != 4 or 0 in self.keys.shape:
            raise ValueError(
                f"keys {list(self.keys.shape)} and values {list(self.values.shape)} are not both "
                "[layers, tokens, heads, D]"
            )
        for x in (self.keys, self.values):
            if not x.is_contiguous() or (x.device.type != "meta" and x.data_ptr() % ALIGNMENT_BYTES):
                raise ValueError(f"a plane is contiguous and begins at a multiple of {ALIGNMENT_BYTES} bytes")
        _check_scales("keys", self.keys, self.key_scales)
        _check_scales("values", self.values, self.value_scales)

    @property
    def layers(self) -> int:
        """How many layers have keys and values."""
        return self.keys.shape[0]

    @property
    def heads(self) -> int:
        """Heads of a token."""
        return self.keys.shape[2]

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.keys.shape[3]

    def require_layer(self, op: str, layer: int) -> None:
        """Raise ValueError unless there is such a layer."""
        if not 0 <= layer < self.layers:
            raise ValueError(f"{op}: no layer {layer} in a pool of {self.layers}")


def _check_scales(what: str, rows: Tensor, scales: Tensor | None) -> None:
    if (scales is None) != (rows.dtype != torch.int8):
        raise ValueError(f"INT8 {what}, and no others, have scales; got {what} in {rows.dtype}")
    if scales is None:
        return
    layers, tokens, heads, _ = rows.shape
    fits = list(scales.shape) == [layers, heads, tokens] and scales.device == rows.device
    if not fits or not scales.is_contiguous() or scales.dtype != torch.float32:
        raise ValueError(
            f"scales {list(scales.shape)} in {scales.dtype} on {scales.device} do not fit {what} "
            f"{list(rows.shape)} on {rows.device}"
        )


class Attended(NamedTuple):
    """What a row attends: keys and values [tokens, heads, D], and scales [heads, tokens] of those in INT8."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None


@dataclass(frozen=True, eq=False)
class KVView:
    """What the rows of a batch attend.

    Args:
        planes: the pool.
        bounds: int32 [2, B], tokens of the pool: where each row's attended keys begin, and where they end. Nothing
            outside is read. Of one row they are what libraries call cumulative lengths.
        max_tokens: an upper bound of a row's keys, known to the host: what launches are sized by.
        last_log: fp32 [B], or None. The last key attended stands for exp(last_log) equal ones.

    """

    planes: KVPlanes
    bounds: Tensor
    max_tokens: int
    last_log: Tensor | None = None

    def __post_init__(self) -> None:
        require_integers("KVView: bounds", self.bounds, (2, self.rows), self.planes.keys.device)
        if self.last_log is not None and (
            self.last_log.shape != (self.rows,) or self.last_log.dtype != torch.float32
        ):
            raise ValueError(
                f"last_log must be fp32 [{self.rows}]; got {self.last_log.dtype} {list(self.last_log.shape)}"
            )
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; a row attends at least one token")

    @property
    def rows(self) -> int:
        """How many rows the batch has."""
        return self.bounds.shape[-1]

    def attended(self, row: int, layer: int) -> Attended:
        """Keys, values and scales of a row: views.

        Reads the row's bounds back: for references, not for a hot path.
        """
        begin, end = self.bounds[:, row].tolist()
        scales = (self.planes.key_scales, self.planes.value_scales)
        return Attended(
            self.planes.keys[layer, begin:end],
            self.planes.values[layer, begin:end],
            *(None if plane is None else plane[layer, :, begin:end] for plane in scales),
        )


def require_integers(what: str, x: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise ValueError unless `x` is contiguous int32 of `shape` on `device`."""
    if tuple(x.shape) != shape or x.dtype != torch.int32 or not x.is_contiguous() or x.device != device:
        raise ValueError(
            f"{what} must be contiguous int32 {list(shape)} on {device}; got {x.dtype} {list(x.shape)} on "
            f"{x.device}"
        )


def layer_slots(slot_mapping: Tensor, layer: int) -> Tensor:
    """The slots [B, frames] of a layer: a mapping has them for all layers at once, or for each."""
    return slot_mapping if slot_mapping.dim() == 2 else slot_mapping[layer]
