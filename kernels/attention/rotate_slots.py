"""Slots at fixed places of the window turned to where the window is now.

A key in the frame sink carries its place in the window, not in the stream. Whenever the window moves on, it is
turned again, from its raw copy: turning a turned key would add up roundings. Only the first P pairs of a head turn
with the frame, so no other channel is read or written. Doing it twice changes nothing.

    plane      [layers, tokens, H, D]     keys of the pool; INT8 ones keep their scales, which cover every turn
    raw plane  [layers, tokens, H, 2 P]   normed keys that were not turned, of the model's dtype
    freqs      [R, P] complex64           of each of R slots
    slots      [R] int32                  tokens of the pool at which they begin
    raw slots  [R] int32                  the same in the raw plane

Bytes: 2 P of a head's channels read and as many written, in every layer: 0.30 GB for three frames of 480x832, once
in a block (0.1 ms at 85 % of an H100's 3.35 TB/s).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.kv_view import KVPlanes, require_integers
from kernels.attention.rope import apply_rope
from kernels.attention.slots import check_raw_plane
from kernels.eight_bits import int8_levels
from kernels.quantize import levels_of
from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS

TILES: Tiles = {sm: Tile(m=16, n=64, warps=4) for sm in ARCHITECTURES} | {INTERPRETER: Tile(m=64, n=128, warps=1)}
"""`m` heads of tokens, of at most `n` channels that turn, rounded up to a power of two."""


def rotate_slots_reference(
    planes: KVPlanes, raw: Tensor, freqs: Tensor, slots: Tensor, raw_slots: Tensor, frame_tokens: int
) -> None:
    """In plain PyTorch; reads the slots back."""
    channels = raw.shape[-1]
    for freq, slot, raw_slot in zip(freqs, slots.tolist(), raw_slots.tolist(), strict=True):
        frame, kept = slice(slot, slot + frame_tokens), raw[:, raw_slot : raw_slot + frame_tokens]
        turned = apply_rope(kept, freq.expand(frame_tokens, -1))
        if planes.key_scales is not None:
            scales = planes.key_scales[:, :, frame].mT
            turned = int8_levels(apply_rope(kept.float(), freq.expand(frame_tokens, -1)), scales)
        planes.keys[:, frame, :, :channels] = turned.to(planes.keys.dtype)


@triton.jit
def _rotate_slots_kernel(
    p_raw: tl.tensor, p_keys: tl.tensor, p_key_scales: tl.tensor, p_freqs: tl.tensor, p_slots: tl.tensor,
    p_raw_slots: tl.tensor, frame_tokens: tl.tensor, pool_tokens: tl.tensor, raw_tokens: tl.tensor,
    H: tl.constexpr, D: tl.constexpr, MOVING: tl.constexpr, INT8: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """A program: BLOCK_M heads of a slot's tokens in one layer."""
    i_slot, i_layer = tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_m, o_d = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    m_m = o_m < frame_tokens * H
    m_x = m_m[:, None] & (o_d < MOVING)[None, :]
    token = i_layer * pool_tokens + tl.load(p_slots + i_slot)
    raw_token = i_layer * raw_tokens + tl.load(p_raw_slots + i_slot)
    b_raw = tl.load(p_raw + (raw_token * H + o_m)[:, None] * MOVING + o_d[None, :], mask=m_x, other=0.0)
    b_freqs = tl.load(p_freqs + i_slot * MOVING + o_d, mask=o_d < MOVING, other=0.0)
    b_cos, b_sin = tl.split(tl.reshape(b_freqs, (1, BLOCK_D // 2, 2)))
    b_even, b_odd = tl.split(tl.reshape(b_raw.to(tl.float32), (BLOCK_M, BLOCK_D // 2, 2)))
    b_k = tl.join(b_even * b_cos - b_odd * b_sin, b_even * b_sin + b_odd * b_cos)
    b_k = tl.reshape(b_k, (BLOCK_M, BLOCK_D))
    if INT8:
        o_scale = (i_layer * H + o_m % H) * pool_tokens + tl.load(p_slots + i_slot) + o_m // H
        b_scale = tl.load(p_key_scales + o_scale, mask=m_m, other=1.0)
        b_k = levels_of(b_k, b_scale)
    p_k = p_keys + (token * H + o_m)[:, None] * D + o_d[None, :]
    tl.store(p_k, b_k.to(p_keys.dtype.element_ty), mask=m_x)


def rotate_slots(
    planes: KVPlanes, raw: Tensor, freqs: Tensor, slots: Tensor, raw_slots: Tensor, frame_tokens: int
) -> None:
    """As `rotate_slots_reference`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or more channels turn than the tile takes.

    """
    count, device = freqs.shape[0], planes.keys.device
    # A pool all in INT8 does not say what its keys were computed in.
    computed = [x.dtype for x in (planes.keys, planes.values) if x.dtype != torch.int8]
    check_raw_plane("rotate_slots", raw, planes, 2 * freqs.shape[-1], computed[0] if computed else raw.dtype)
    if freqs.dtype != torch.complex64 or not freqs.is_contiguous():
        raise ValueError(
            f"rotate_slots: freqs must be contiguous complex64; got {freqs.dtype} {list(freqs.shape)}"
        )
    require_integers("rotate_slots: slots", slots, (count,), device)
    require_integers("rotate_slots: raw slots", raw_slots, (count,), device)
    tile = tile_for(TILES, architecture(device), "rotate_slots")
    if raw.shape[3] > tile.n:
        raise ValueError(f"rotate_slots: {raw.shape[3]} channels turn; its tile takes at most {tile.n}")
    _rotate_slots(planes.keys, planes.key_scales, raw, torch.view_as_real(freqs), slots, raw_slots, frame_tokens)


@torch.library.custom_op(
    "longtake::rotate_slots",
    mutates_args=("keys",),
    schema="(Tensor(a!) keys, Tensor? key_scales, Tensor raw, Tensor freqs, Tensor slots, Tensor raw_slots, "
    "int frame_tokens) -> ()",
)
def _rotate_slots(
    keys: Tensor, key_scales: Tensor | None, raw: Tensor, freqs: Tensor, slots: Tensor, raw_slots: Tensor,
    frame_tokens: int,
) -> None:  # fmt: skip
    layers, pool_tokens, heads, dim = keys.shape
    tile = TILES[architecture(keys.device)]
    grid = (triton.cdiv(frame_tokens * heads, tile.m), freqs.shape[0], layers)
    _rotate_slots_kernel[grid](
        raw, keys, raw if key_scales is None else key_scales, freqs, slots, raw_slots, frame_tokens, pool_tokens,
        raw.shape[1], H=heads, D=dim, MOVING=raw.shape[3], INT8=key_scales is not None, BLOCK_M=tile.m,
        BLOCK_D=triton.next_power_of_2(raw.shape[3]), **tile.options,
    )  # fmt: skip


@_rotate_slots.register_fake
def _(*arguments: object) -> None:
    return None


def aot_cases() -> Sequence[AotCase]:
    """The real model's sink in bf16, with keys in bf16 and in INT8."""
    return [_case(sm, int8=int8) for sm in ARCHITECTURES for int8 in (False, True)]


def _case(sm: int, *, int8: bool) -> AotCase:
    half, tile = FLOATS[torch.bfloat16], TILES[sm]
    pointers = {"p_raw": half, "p_keys": "*i8" if int8 else half, "p_key_scales": "*fp32", "p_freqs": "*fp32"}
    sizes = dict.fromkeys(("frame_tokens", "pool_tokens", "raw_tokens"), "i32")
    return AotCase(
        name=f"rotate_slots{'_int8' if int8 else ''}_sm{sm}",
        kernel=_rotate_slots_kernel,
        architecture=sm,
        tile=tile,
        arguments=pointers | {"p_slots": "*i32", "p_raw_slots": "*i32"} | sizes,
        constants={"H": 12, "D": 128, "MOVING": 44, "INT8": int8, "BLOCK_M": tile.m, "BLOCK_D": 64},
        aligned=tuple(pointers),
    )  # fmt: skip
