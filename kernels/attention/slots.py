"""Where a pass's keys and values go, and what turns them: arguments of several kernels, and their checks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention.kv_view import ALIGNMENT_BYTES, KVPlanes
from kernels.attention.rope import join_freqs


@dataclass(frozen=True, eq=False)
class RopeFreqs:
    """What turns a batch's tokens: `frame` complex64 [B, frames, P], `spatial` complex64 [T / frames, D/2 - P]."""

    frame: Tensor
    spatial: Tensor

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return 2 * (self.frame.shape[-1] + self.spatial.shape[-1])

    @property
    def tokens(self) -> int:
        """Of a row."""
        return self.frame.shape[1] * self.spatial.shape[0]

    @property
    def joined(self) -> Tensor:
        """Of all tokens: [B, T, D/2]."""
        return join_freqs(self.frame, self.spatial)


@dataclass(frozen=True, eq=False)
class Slots:
    """Where a batch's frames are written: `start` int32 [B] of each row's run, and its `mapping`."""

    start: Tensor
    mapping: Tensor

    @property
    def frames(self) -> int:
        """Of a row."""
        return self.mapping.shape[-1]


@dataclass(frozen=True, eq=False)
class RawKeys:
    """Where raw keys are kept: a `plane` [layers, tokens, H, 2 P], and the slots in it of a batch's frames."""

    plane: Tensor
    slots: Slots


def check_freqs(op: str, rows: Tensor, freqs: RopeFreqs) -> None:
    """Raise ValueError unless `freqs` turn `rows` [B, T, H * D]."""
    batch, tokens, channels = rows.shape
    for name, x in (("frame", freqs.frame), ("spatial", freqs.spatial)):
        if x.dtype != torch.complex64 or not x.is_contiguous() or x.device != rows.device:
            raise ValueError(f"{op}: {name} freqs must be contiguous complex64 on {rows.device}; got {x.dtype}")
    if freqs.frame.shape[0] != batch or freqs.tokens != tokens or channels % freqs.head_dim:
        raise ValueError(
            f"{op}: freqs {list(freqs.frame.shape)} and {list(freqs.spatial.shape)} do not turn {batch} rows of "
            f"{tokens} tokens with {channels} channels"
        )


def check_slots(op: str, v: Tensor, planes: KVPlanes, slots: Slots, layer: int) -> None:
    """Raise ValueError unless tokens as those of `v` [B, T, H * D] can be written into slots of a layer."""
    _check_mapping(op, v, slots, planes.layers)
    planes.require_layer(op, layer)
    if planes.heads * planes.head_dim != v.shape[2] or planes.values.dtype != v.dtype:
        raise ValueError(
            f"{op}: the pool holds {planes.heads} heads of {planes.head_dim} in {planes.values.dtype}; a token "
            f"has {v.shape[2]} channels in {v.dtype}"
        )
    if planes.keys.dtype not in (v.dtype, torch.int8) or planes.keys.device != v.device:
        raise ValueError(
            f"{op}: keys are kept as {planes.keys.dtype} on {planes.keys.device}; it writes {v.dtype} or INT8 on "
            f"{v.device}"
        )
    if v.shape[2] * planes.keys.element_size() % ALIGNMENT_BYTES:
        raise ValueError(
            f"{op}: a token's keys take {v.shape[2]} channels, no multiple of {ALIGNMENT_BYTES} bytes"
        )


def check_raw_keys(op: str, v: Tensor, planes: KVPlanes, raw: RawKeys, moving: int) -> None:
    """Raise ValueError unless `moving` channels of each head of such tokens can be kept in `raw`."""
    layers, _, *token = raw.plane.shape
    if (layers, *token) != (planes.layers, planes.heads, moving) or not raw.plane.is_contiguous():
        raise ValueError(
            f"{op}: raw keys must be contiguous [{planes.layers}, tokens, {planes.heads}, {moving}]; got "
            f"{list(raw.plane.shape)}"
        )
    if (raw.plane.dtype, raw.plane.device) != (v.dtype, v.device):
        raise ValueError(f"{op}: raw keys must be {v.dtype} on {v.device}; got {raw.plane.dtype}")
    _check_mapping(op, v, raw.slots, planes.layers)


def _check_mapping(op: str, rows: Tensor, slots: Slots, layers: int) -> None:
    batch, tokens, _ = rows.shape
    shapes = [(batch, slots.frames), (layers, batch, slots.frames)]
    if tuple(slots.mapping.shape) not in shapes or slots.start.shape != (batch,) or tokens % max(slots.frames, 1):
        raise ValueError(
            f"{op}: slots {list(slots.mapping.shape)} from {list(slots.start.shape)} do not fit {batch} rows of "
            f"{tokens} tokens in {layers} layers"
        )
    for x in (slots.start, slots.mapping):
        if x.dtype != torch.int32 or not x.is_contiguous() or x.device != rows.device:
            raise ValueError(f"{op}: slots must be contiguous int32 on {rows.device}; got {x.dtype} on {x.device}")
