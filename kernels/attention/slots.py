"""Where a pass's keys and values go, and what turns them: arguments of several kernels, and their checks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention.kv_view import ALIGNMENT_BYTES, KVPlanes, require_integers
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


def check_planes(op: str, v: Tensor, planes: KVPlanes, layer: int) -> None:
    """Raise ValueError unless tokens as those of `v` [B, T, H * D] can be kept in a layer of `planes`."""
    planes.require_layer(op, layer)
    held = planes.heads * planes.head_dim, planes.keys.device
    dtypes = {planes.keys.dtype, planes.values.dtype}
    if held != (v.shape[2], v.device) or not dtypes <= {v.dtype, torch.int8}:
        raise ValueError(
            f"{op}: the pool holds tokens of {held[0]} channels on {held[1]}, keys in {planes.keys.dtype} and "
            f"values in {planes.values.dtype}; it is given {v.shape[2]} in {v.dtype} on {v.device}"
        )
    if v.shape[2] * min(dtype.itemsize for dtype in dtypes) % ALIGNMENT_BYTES:
        raise ValueError(f"{op}: tokens of {v.shape[2]} channels are no multiple of {ALIGNMENT_BYTES} bytes")


def check_raw_plane(op: str, plane: Tensor, planes: KVPlanes, moving: int, dtype: torch.dtype) -> None:
    """Raise ValueError unless `moving` channels of each head of such tokens can be kept in `plane` in `dtype`."""
    layers, _, *token = plane.shape
    kept = (layers, *token) == (planes.layers, planes.heads, moving) and plane.is_contiguous()
    if not kept or (plane.dtype, plane.device) != (dtype, planes.keys.device):
        raise ValueError(
            f"{op}: raw keys must be contiguous {dtype} [{planes.layers}, tokens, {planes.heads}, {moving}] on "
            f"{planes.keys.device}; got {plane.dtype} {list(plane.shape)} on {plane.device}"
        )


def check_mapping(op: str, slots: Slots, rows: int, frames: int, layers: int, device: torch.device) -> None:
    """Raise ValueError unless `slots` are of so many rows and frames, in all layers at once or in each."""
    shapes = [(rows, frames), (layers, rows, frames)]
    if tuple(slots.mapping.shape) not in shapes or slots.start.shape != (rows,):
        raise ValueError(
            f"{op}: slots {list(slots.mapping.shape)} from {list(slots.start.shape)} do not fit {rows} rows of "
            f"{frames} frames in {layers} layers"
        )
    for x in (slots.start, slots.mapping):
        require_integers(f"{op}: slots", x, tuple(x.shape), device)
