"""A pass's frames copied into the slots that were chosen from their keys (`kernels.slot_choice.slot_queue`).

    staged   planes of one layer that hold the batch's frames, one behind the other
    target   see `kernels.attention.slots`; a kernel inside the pass may have written its mapping

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


def copy_slots_reference(staged: KVPlanes, planes: KVPlanes, target: Slots, layer: int) -> None:
    """In plain PyTorch; reads the mapping back."""
    mapping = layer_slots(target.mapping, layer)
    tokens = staged.keys.shape[1] // mapping.numel()
    pairs = list(zip(_held(staged, 0), _held(planes, layer), strict=True))
    slots = [
        (start, slot) for start, row in zip(target.start.tolist(), mapping.tolist(), strict=True) for slot in row
    ]
    for frame, (start, slot) in enumerate(slots):
        if slot != NO_SLOT:
            begin = start + slot * tokens
            for kept, plane in pairs:
                plane[begin : begin + tokens] = kept[frame * tokens : (frame + 1) * tokens]


def _held(planes: KVPlanes, layer: int) -> list[Tensor]:
    """What a layer keeps of its tokens, [tokens, ...] each."""
    scales = [x[layer].T for x in (planes.key_scales, planes.value_scales) if x is not None]
    return [planes.keys[layer], planes.values[layer], *scales]


@triton.jit(do_not_specialize=["layer"])
def _copy_slots_kernel(
    p_staged_keys: tl.tensor, p_staged_values: tl.tensor, p_staged_key_scales: tl.tensor,
    p_staged_value_scales: tl.tensor, p_keys: tl.tensor, p_values: tl.tensor, p_key_scales: tl.tensor,
    p_value_scales: tl.tensor, p_start: tl.tensor, p_mapping: tl.tensor, frames: tl.tensor,
    frame_tokens: tl.tensor, staged_tokens: tl.tensor, pool_tokens: tl.tensor, layer: tl.tensor,
    H: tl.constexpr, CHANNELS: tl.constexpr, INT8_KEYS: tl.constexpr, INT8_VALUES: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_H: tl.constexpr,
) -> None:  # fmt: skip
    """A program: one token of a frame of a row."""
    i_frame, i_token = tl.program_id(1), tl.program_id(0)
    slot = tl.load(p_mapping + i_frame)
    if slot >= 0:
        staged = i_frame.to(tl.int64) * frame_tokens + i_token
        token = tl.load(p_start + i_frame // frames).to(tl.int64) + slot * frame_tokens + i_token
        o_c, o_h = tl.arange(0, BLOCK), tl.arange(0, BLOCK_H)
        m_c, m_h = o_c < CHANNELS, o_h < H
        o_from, o_to = staged * CHANNELS + o_c, (layer.to(tl.int64) * pool_tokens + token) * CHANNELS + o_c
        tl.store(p_keys + o_to, tl.load(p_staged_keys + o_from, mask=m_c), mask=m_c)
        tl.store(p_values + o_to, tl.load(p_staged_values + o_from, mask=m_c), mask=m_c)
        o_staged = o_h.to(tl.int64) * staged_tokens + staged
        o_scale = (layer.to(tl.int64) * H + o_h) * pool_tokens + token
        if INT8_KEYS:
            tl.store(p_key_scales + o_scale, tl.load(p_staged_key_scales + o_staged, mask=m_h), mask=m_h)
        if INT8_VALUES:
            tl.store(p_value_scales + o_scale, tl.load(p_staged_value_scales + o_staged, mask=m_h), mask=m_h)


def copy_slots(staged: KVPlanes, planes: KVPlanes, target: Slots, layer: int) -> None:
    """As `copy_slots_reference`. A frame without a slot is not copied.

    Raises:
        ValueError: planes, mapping or devices do not fit, there is no such layer, or a token outgrows the tile.

    """
    rows, frames = target.mapping.shape[-2], target.frames
    check_mapping("copy_slots", target, rows, frames, planes.layers, planes.keys.device)
    planes.require_layer("copy_slots", layer)
    _check_staged(staged, planes, rows * frames)
    channels = planes.heads * planes.head_dim
    tile = tile_for(TILES, architecture(planes.keys.device), "copy_slots")
    if channels > tile.n:
        raise ValueError(f"copy_slots: {channels} channels of a token; its tile takes at most {tile.n}")
    _copy_slots(
        staged.keys, staged.values, staged.key_scales, staged.value_scales, planes.keys, planes.values,
        planes.key_scales, planes.value_scales, target.start, layer_slots(target.mapping, layer), layer,
    )  # fmt: skip


def _check_staged(staged: KVPlanes, planes: KVPlanes, frames: int) -> None:
    """Raise ValueError unless `staged` holds so many frames as `planes` keep theirs."""
    held = [(x.heads, x.head_dim, x.keys.dtype, x.values.dtype, x.keys.device) for x in (staged, planes)]
    if held[0] != held[1] or staged.layers != 1 or staged.keys.shape[1] % frames:
        raise ValueError(
            f"copy_slots: staged keys {list(staged.keys.shape)} in {staged.keys.dtype} are not {frames} frames "
            f"for a pool {list(planes.keys.shape)} in {planes.keys.dtype}"
        )


@torch.library.custom_op(
    "longtake::copy_slots",
    mutates_args=("keys", "values", "key_scales", "value_scales"),
    schema="(Tensor staged_keys, Tensor staged_values, Tensor? staged_key_scales, Tensor? staged_value_scales, "
    "Tensor(a!) keys, Tensor(b!) values, Tensor(c!)? key_scales, Tensor(d!)? value_scales, Tensor start, "
    "Tensor mapping, int layer) -> ()",
)
def _copy_slots(
    staged_keys: Tensor, staged_values: Tensor, staged_key_scales: Tensor | None,
    staged_value_scales: Tensor | None, keys: Tensor, values: Tensor, key_scales: Tensor | None,
    value_scales: Tensor | None, start: Tensor, mapping: Tensor, layer: int,
) -> None:  # fmt: skip
    _, pool_tokens, heads, dim = keys.shape
    staged_tokens = staged_keys.shape[1]
    frame_tokens = staged_tokens // mapping.numel()
    scales = (staged_key_scales, staged_value_scales, key_scales, value_scales)
    staged_key, staged_value, key, value = (start if x is None else x for x in scales)
    _copy_slots_kernel[(frame_tokens, mapping.numel())](
        staged_keys, staged_values, staged_key, staged_value, keys, values, key, value, start, mapping,
        mapping.shape[1], frame_tokens, staged_tokens, pool_tokens, layer,
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
    planes = {"keys": "*i8" if int8_keys else half, "values": "*i8" if int8_values else half}
    planes |= {"key_scales": "*fp32", "value_scales": "*fp32"}
    pointers = {f"{where}_{name}": kind for where in ("p_staged", "p") for name, kind in planes.items()}
    sizes = ("frames", "frame_tokens", "staged_tokens", "pool_tokens", "layer")
    return AotCase(
        name=name,
        kernel=_copy_slots_kernel,
        architecture=sm,
        tile=TILES[sm],
        arguments=pointers | {"p_start": "*i32", "p_mapping": "*i32"} | dict.fromkeys(sizes, "i32"),
        constants={
            "H": 12, "CHANNELS": 1536, "INT8_KEYS": int8_keys, "INT8_VALUES": int8_values, "BLOCK": 2048,
            "BLOCK_H": 16,
        },
        aligned=tuple(pointers),
    )  # fmt: skip
