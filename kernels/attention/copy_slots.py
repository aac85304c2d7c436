"""Frames of a KV pool copied from slot to slot: from a staging run into slots that were chosen from their keys.

    source, target   see `kernels.attention.slots`; a kernel inside the pass may have written the target's mapping

Keys, values and scales are copied as they lie. Bytes: all of them read and written, 4 N a token with N those of
its keys in 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.kv_view import NO_SLOT, KVPlanes, layer_slots
from kernels.attention.slots import Slots, check_mapping
from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS

TILES: Tiles = {sm: Tile(m=1, n=2048, warps=4) for sm in ARCHITECTURES} | {INTERPRETER: Tile(m=1, n=2048, warps=1)}
"""`n` channels of a token at a time."""


def copy_slots_reference(planes: KVPlanes, source: Slots, target: Slots, layer: int, frame_tokens: int) -> None:
    """In plain PyTorch; reads the mappings back."""
    pairs = zip(_tokens(source, layer, frame_tokens), _tokens(target, layer, frame_tokens), strict=True)
    held = [planes.keys[layer], planes.values[layer]]
    held += [scales[layer].T for scales in (planes.key_scales, planes.value_scales) if scales is not None]
    for begin, end in pairs:
        if begin is not None and end is not None:
            for plane in held:
                plane[end : end + frame_tokens] = plane[begin : begin + frame_tokens].clone()


def _tokens(slots: Slots, layer: int, frame_tokens: int) -> list[int | None]:
    """Where each frame of each row begins in the pool."""
    rows = zip(slots.start.tolist(), layer_slots(slots.mapping, layer).tolist(), strict=True)
    return [None if slot == NO_SLOT else start + slot * frame_tokens for start, row in rows for slot in row]


@triton.jit(do_not_specialize=["layer"])
def _copy_slots_kernel(
    p_keys: tl.tensor, p_values: tl.tensor, p_key_scales: tl.tensor, p_value_scales: tl.tensor,
    p_start: tl.tensor, p_mapping: tl.tensor, p_to_start: tl.tensor, p_to_mapping: tl.tensor,
    frames: tl.tensor, frame_tokens: tl.tensor, pool_tokens: tl.tensor, layer: tl.tensor,
    H: tl.constexpr, CHANNELS: tl.constexpr, INT8_KEYS: tl.constexpr, INT8_VALUES: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_H: tl.constexpr,
) -> None:  # fmt: skip
    """A program: one token of a frame of a row."""
    i_frame, i_token = tl.program_id(1), tl.program_id(0)
    slot, to_slot = tl.load(p_mapping + i_frame), tl.load(p_to_mapping + i_frame)
    if (slot >= 0) & (to_slot >= 0):
        i_b = i_frame // frames
        token = tl.load(p_start + i_b).to(tl.int64) + slot * frame_tokens + i_token
        to_token = tl.load(p_to_start + i_b).to(tl.int64) + to_slot * frame_tokens + i_token
        o_layer = layer.to(tl.int64) * pool_tokens
        o_c, o_h = tl.arange(0, BLOCK), tl.arange(0, BLOCK_H)
        m_c, m_h = o_c < CHANNELS, o_h < H
        o_from, o_to = (o_layer + token) * CHANNELS + o_c, (o_layer + to_token) * CHANNELS + o_c
        tl.store(p_keys + o_to, tl.load(p_keys + o_from, mask=m_c), mask=m_c)
        tl.store(p_values + o_to, tl.load(p_values + o_from, mask=m_c), mask=m_c)
        o_scale = (layer.to(tl.int64) * H + o_h) * pool_tokens
        if INT8_KEYS:
            p_scales = p_key_scales + o_scale
            tl.store(p_scales + to_token, tl.load(p_scales + token, mask=m_h), mask=m_h)
        if INT8_VALUES:
            p_scales = p_value_scales + o_scale
            tl.store(p_scales + to_token, tl.load(p_scales + token, mask=m_h), mask=m_h)


def copy_slots(planes: KVPlanes, source: Slots, target: Slots, layer: int, frame_tokens: int) -> None:
    """As `copy_slots_reference`. A frame without a slot on either side stays; no slot is both source and target.

    Raises:
        ValueError: mappings or devices do not fit, there is no such layer, or a token is longer than the tile.

    """
    rows = source.mapping.shape[-2]
    for slots in (source, target):
        check_mapping("copy_slots", slots, rows, source.frames, planes.layers, planes.keys.device)
    planes.require_layer("copy_slots", layer)
    channels, tile = (
        planes.heads * planes.head_dim,
        tile_for(TILES, architecture(planes.keys.device), "copy_slots"),
    )
    if channels > tile.n:
        raise ValueError(f"copy_slots: {channels} channels of a token; its tile takes at most {tile.n}")
    _copy_slots(
        planes.keys, planes.values, planes.key_scales, planes.value_scales, source.start,
        layer_slots(source.mapping, layer), target.start, layer_slots(target.mapping, layer), layer, frame_tokens,
    )  # fmt: skip


@torch.library.custom_op(
    "longtake::copy_slots",
    mutates_args=("keys", "values", "key_scales", "value_scales"),
    schema="(Tensor(a!) keys, Tensor(b!) values, Tensor(c!)? key_scales, Tensor(d!)? value_scales, Tensor start, "
    "Tensor mapping, Tensor to_start, Tensor to_mapping, int layer, int frame_tokens) -> ()",
)
def _copy_slots(
    keys: Tensor, values: Tensor, key_scales: Tensor | None, value_scales: Tensor | None, start: Tensor,
    mapping: Tensor, to_start: Tensor, to_mapping: Tensor, layer: int, frame_tokens: int,
) -> None:  # fmt: skip
    _, pool_tokens, heads, dim = keys.shape
    _copy_slots_kernel[(frame_tokens, mapping.numel())](
        keys, values, start if key_scales is None else key_scales, start if value_scales is None else value_scales,
        start, mapping, to_start, to_mapping, mapping.shape[1], frame_tokens, pool_tokens, layer,
        H=heads, CHANNELS=heads * dim, INT8_KEYS=key_scales is not None, INT8_VALUES=value_scales is not None,
        BLOCK=triton.next_power_of_2(heads * dim), BLOCK_H=triton.next_power_of_2(heads),
        **TILES[architecture(keys.device)].options,
    )  # fmt: skip


@_copy_slots.register_fake
def _(*arguments: object) -> None:
    return None


def aot_cases() -> Sequence[AotCase]:
    """The real model in bf16, with keys in bf16 and in INT8, and values too."""
    forms = {"copy_slots": (False, False), "copy_slots_int8": (True, False), "copy_slots_int8_kv": (True, True)}
    return [_case(f"{name}_sm{sm}", sm, *int8) for sm in ARCHITECTURES for name, int8 in forms.items()]


def _case(name: str, sm: int, int8_keys: bool, int8_values: bool) -> AotCase:
    half = FLOATS[torch.bfloat16]
    pointers = {"p_keys": "*i8" if int8_keys else half, "p_values": "*i8" if int8_values else half}
    pointers |= {"p_key_scales": "*fp32", "p_value_scales": "*fp32"}
    integers = dict.fromkeys(("p_start", "p_mapping", "p_to_start", "p_to_mapping"), "*i32")
    return AotCase(
        name=name,
        kernel=_copy_slots_kernel,
        architecture=sm,
        tile=TILES[sm],
        arguments=pointers | integers | dict.fromkeys(("frames", "frame_tokens", "pool_tokens", "layer"), "i32"),
        constants={
            "H": 12, "CHANNELS": 1536, "INT8_KEYS": int8_keys, "INT8_VALUES": int8_values, "BLOCK": 2048,
            "BLOCK_H": 16,
        },
        aligned=tuple(pointers),
    )  # fmt: skip
