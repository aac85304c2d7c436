"""From projections to attention: RMS norm over all heads, RoPE, and the write of keys and values into slots.

    queries  = turn(norm(q) * q_weight)
    pool     = turn(norm(k) * k_weight), v      in the slots that the mapping names
    raw keys = norm(k) * k_weight               where a key's frame will move: only the pairs that turn with it

    q, k, v        [B, T, H * D]               rows as the linear layers give them; may lie side by side
    weights        [H * D]
    frame freqs    [B, frames, P] complex64    (`kernels.attention.rope`): what turns the first P pairs of a head
    spatial freqs  [T / frames, D/2 - P]       the same for the others, of a frame's tokens
    queries        [B, T, H, D]
    slot mapping   [B, frames] or [layers, B, frames] int32: slots of a row's run, or `NO_SLOT`
    raw keys       [layers, tokens, H, 2 P]    a plane of its own with a mapping of its own

`qk_norm_rope` does all of it, `write_kv` all but the queries, for a pass made for its keys and values. All is
computed in fp32, and the only rounding is at the end. Keys and values may each be kept in INT8, with a scale for
each head of a token. Where slots are to be chosen from the keys, these are written to a staging run first, and
copied from there (`kernels.slot_choice.copy_slots`).

A key with a raw copy is turned again whenever its frame's position changes (`kernels.attention.rotate_slots`), so
its INT8 scale must not depend on where it is: it covers the modulus of each pair that turns with the frame.

Bytes per token, with N = 2 H D those of a row in 16 bits (3 KB at 12 heads of 128): q, k and v read, queries, keys
and values written, 6 N; raw keys P / 64 of an N more at D 128; freqs, 4 D a token, from the L2 cache. INT8 keys
take half an N less and 4 H more, and so do INT8 values. PyTorch's own operators move 18 N for each norm, 10 N for
each turn and 4 N to write: 60 N.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.kv_view import NO_SLOT, KVPlanes, layer_slots
from kernels.attention.rope import apply_rope
from kernels.attention.slots import (
    RawKeys,
    RopeFreqs,
    Slots,
    check_freqs,
    check_mapping,
    check_planes,
    check_raw_plane,
)
from kernels.eight_bits import int8_levels, int8_scales
from kernels.quantize import levels_of, quantize_rows, quantize_tile, scales_of
from kernels.rms_norm import check_projections
from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS, rms_norm_reference

TILES: Tiles = {sm: Tile(m=1, n=2048, warps=4) for sm in ARCHITECTURES} | {INTERPRETER: Tile(m=1, n=2048, warps=1)}
"""A row at a time, of at most `n` channels once heads and channels are rounded up to powers of two."""


def qk_norm_rope_reference(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, k_weight: Tensor, freqs: RopeFreqs,
    planes: KVPlanes, slots: Slots, raw: RawKeys | None, layer: int, eps: float,
) -> Tensor:  # fmt: skip
    """In plain PyTorch; reads the mapping back."""
    write_kv_reference(k, v, k_weight, freqs, planes, slots, raw, layer, eps)
    return apply_rope(_normed_heads(q, q_weight, freqs.head_dim, eps), freqs.joined)


def write_kv_reference(
    k: Tensor, v: Tensor, weight: Tensor, freqs: RopeFreqs,
    planes: KVPlanes, slots: Slots, raw: RawKeys | None, layer: int, eps: float,
) -> None:  # fmt: skip
    """Keys and values only."""
    normed = _normed_heads(k, weight, freqs.head_dim, eps)
    moving = None
    if raw is not None:
        moving = normed[..., : raw.plane.shape[-1]]
        kept = layer_slots(raw.slots.mapping, layer)
        _scatter(moving, raw.plane[layer], raw.slots.start, kept)
        moving = torch.where((kept == NO_SLOT).repeat_interleave(_frame_tokens(k, kept), 1)[..., None, None], 0, 1)
    _store(apply_rope(normed, freqs.joined), _heads(v, freqs.head_dim), planes, slots, layer, moving, freqs)


def _store(
    keys: Tensor, values: Tensor, planes: KVPlanes, slots: Slots, layer: int,
    moving: Tensor | None, freqs: RopeFreqs | None,
) -> None:  # fmt: skip
    """Put turned rows into slots; where `moving` is 1, keys will be turned again."""
    mapping = layer_slots(slots.mapping, layer)
    if planes.key_scales is not None:
        keys, scales = _quantized(keys, moving, freqs)
        _scatter(scales, planes.key_scales[layer].T, slots.start, mapping)
    if planes.value_scales is not None:
        values, scales = quantize_rows(values)
        _scatter(scales, planes.value_scales[layer].T, slots.start, mapping)
    _scatter(keys, planes.keys[layer], slots.start, mapping)
    _scatter(values, planes.values[layer], slots.start, mapping)


def _quantized(keys: Tensor, moving: Tensor | None, freqs: RopeFreqs | None) -> tuple[Tensor, Tensor]:
    """INT8 of keys [..., H, D]; where `moving` is 1 the scale covers the modulus of each pair that will turn."""
    if moving is None or freqs is None:
        return quantize_rows(keys)
    channels = 2 * freqs.frame.shape[-1]
    modulus = keys[..., :channels].float().unflatten(-1, (-1, 2)).norm(dim=-1)
    reach = torch.where(moving == 1, modulus.amax(-1, keepdim=True), 0)
    amax = torch.maximum(keys.float().abs().amax(-1, keepdim=True), reach)
    scales = int8_scales(amax[..., 0])
    return int8_levels(keys.float(), scales), scales


def _scatter(rows: Tensor, plane: Tensor, start: Tensor, mapping: Tensor) -> None:
    """Write rows [B, T, ...] into a layer's plane [tokens, ...]."""
    tokens = _frame_tokens(rows, mapping)
    for row, begin, slots in zip(rows, start.tolist(), mapping.tolist(), strict=True):
        for frame, slot in zip(row.split(tokens), slots, strict=True):
            if slot != NO_SLOT:
                token = begin + slot * tokens
                plane[token : token + tokens] = frame


def _frame_tokens(rows: Tensor, mapping: Tensor) -> int:
    return rows.shape[1] // mapping.shape[-1]


def _heads(x: Tensor, head_dim: int) -> Tensor:
    return x.unflatten(-1, (-1, head_dim))


def _normed_heads(x: Tensor, weight: Tensor, head_dim: int, eps: float) -> Tensor:
    return _heads(rms_norm_reference(x, weight, eps), head_dim)


@triton.jit
def _normed(
    p_x: tl.tensor, p_weight: tl.tensor, o_x: tl.tensor, m_x: tl.tensor, eps: tl.tensor, DIM: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A row of all heads, [BLOCK_H, BLOCK_D] fp32."""
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_weight = tl.load(p_weight + o_x, mask=m_x, other=0.0).to(tl.float32)
    return b_x * (1.0 / tl.sqrt(tl.sum(b_x * b_x) / DIM + eps)) * b_weight


@triton.jit
def _load_freqs(
    p_frame: tl.tensor, p_spatial: tl.tensor, D: tl.constexpr, MOVING: tl.constexpr, BLOCK_D: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Cosines and sines of a token's pairs, [1, BLOCK_D / 2] each: MOVING channels of the frame, then spatial."""
    o_d = tl.arange(0, BLOCK_D)
    b_frame = tl.load(p_frame + o_d, mask=o_d < MOVING, other=0.0)
    b_spatial = tl.load(p_spatial + o_d - MOVING, mask=(o_d >= MOVING) & (o_d < D), other=0.0)
    return tl.split(tl.reshape(b_frame + b_spatial, (1, BLOCK_D // 2, 2)))


@triton.jit
def turn_pairs(
    b_x: tl.tensor, b_cos: tl.tensor, b_sin: tl.tensor, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Neighbouring channels turned as one complex number, alike in every head."""
    b_even, b_odd = tl.split(tl.reshape(b_x, (BLOCK_H, BLOCK_D // 2, 2)))
    b_turned = tl.join(b_even * b_cos - b_odd * b_sin, b_even * b_sin + b_odd * b_cos)
    return tl.reshape(b_turned, (BLOCK_H, BLOCK_D))


@triton.jit
def quantize_key(
    b_k: tl.tensor, moves: tl.tensor, MOVING: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """INT8 of a token's key [BLOCK_H, BLOCK_D] and scales [BLOCK_H].

    Where it `moves`, its first MOVING channels count by the modulus of their pairs, which no turn changes.
    """
    b_even, b_odd = tl.split(tl.reshape(b_k, (BLOCK_H, BLOCK_D // 2, 2)))
    b_turns = tl.arange(0, BLOCK_D // 2) < MOVING // 2
    b_modulus = tl.where(b_turns[None, :], tl.sqrt(b_even * b_even + b_odd * b_odd), 0.0)
    b_amax = tl.max(tl.abs(b_k), 1)
    b_amax = tl.where(moves, tl.maximum(b_amax, tl.max(b_modulus, 1)), b_amax)
    b_scale = scales_of(b_amax)
    return levels_of(b_k, b_scale), b_scale


@triton.jit(do_not_specialize=["layer"])
def _qk_norm_rope_kernel(
    p_q: tl.tensor, p_k: tl.tensor, p_v: tl.tensor, p_q_weight: tl.tensor, p_k_weight: tl.tensor,
    p_frame: tl.tensor, p_spatial: tl.tensor, p_queries: tl.tensor,
    p_keys: tl.tensor, p_values: tl.tensor, p_key_scales: tl.tensor, p_value_scales: tl.tensor,
    p_start: tl.tensor, p_mapping: tl.tensor, p_raw: tl.tensor, p_raw_start: tl.tensor, p_raw_mapping: tl.tensor,
    T: tl.tensor, q_row: tl.tensor, k_row: tl.tensor, v_row: tl.tensor, frame_tokens: tl.tensor,
    pool_tokens: tl.tensor, raw_tokens: tl.tensor, layer: tl.tensor, eps: tl.tensor,
    H: tl.constexpr, D: tl.constexpr, MOVING: tl.constexpr, QUERIES: tl.constexpr, RAW: tl.constexpr,
    INT8_KEYS: tl.constexpr, INT8_VALUES: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """A program: one token of one row."""
    i_token, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_row, i_in_frame = i_b * T + i_token, i_token % frame_tokens
    i_frame = i_b * (T // frame_tokens) + i_token // frame_tokens
    o_h, o_d = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    o_x = o_h[:, None] * D + o_d[None, :]
    m_x = (o_h < H)[:, None] & (o_d < D)[None, :]
    b_cos, b_sin = _load_freqs(
        p_frame + i_frame * MOVING, p_spatial + i_in_frame * (D - MOVING), D, MOVING, BLOCK_D
    )
    if QUERIES:
        b_q = _normed(p_q + i_row * q_row, p_q_weight, o_x, m_x, eps, H * D)
        b_q = turn_pairs(b_q, b_cos, b_sin, BLOCK_H, BLOCK_D)
        tl.store(p_queries + i_row * H * D + o_x, b_q.to(p_queries.dtype.element_ty), mask=m_x)
    slot = tl.load(p_mapping + i_frame)
    if slot >= 0:
        token = tl.load(p_start + i_b).to(tl.int64) + slot * frame_tokens + i_in_frame
        o_pool = (layer.to(tl.int64) * pool_tokens + token) * (H * D)
        o_scale = (layer.to(tl.int64) * H + o_h) * pool_tokens + token
        b_v = tl.load(p_v + i_row * v_row + o_x, mask=m_x, other=0.0)
        if INT8_VALUES:
            b_v, b_scale = quantize_tile(b_v)
            tl.store(p_value_scales + o_scale, b_scale, mask=o_h < H)
        tl.store(tl.multiple_of(p_values + o_pool, 16) + o_x, b_v, mask=m_x)
        b_k = _normed(p_k + i_row * k_row, p_k_weight, o_x, m_x, eps, H * D)
        moves = False
        if RAW:
            raw_slot = tl.load(p_raw_mapping + i_frame)
            moves = raw_slot >= 0
            if moves:
                raw_token = tl.load(p_raw_start + i_b).to(tl.int64) + raw_slot * frame_tokens + i_in_frame
                p_token = p_raw + (layer.to(tl.int64) * raw_tokens + raw_token) * (H * MOVING)
                o_token = o_h[:, None] * MOVING + o_d[None, :]
                m_raw = m_x & (o_d < MOVING)[None, :]
                tl.store(p_token + o_token, b_k.to(p_raw.dtype.element_ty), mask=m_raw)
        b_k = turn_pairs(b_k, b_cos, b_sin, BLOCK_H, BLOCK_D)
        if INT8_KEYS:
            b_levels, b_scale = quantize_key(b_k, moves, MOVING, BLOCK_H, BLOCK_D)
            tl.store(tl.multiple_of(p_keys + o_pool, 16) + o_x, b_levels, mask=m_x)
            tl.store(p_key_scales + o_scale, b_scale, mask=o_h < H)
        else:
            tl.store(tl.multiple_of(p_keys + o_pool, 16) + o_x, b_k.to(p_keys.dtype.element_ty), mask=m_x)


def qk_norm_rope(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, k_weight: Tensor, freqs: RopeFreqs,
    planes: KVPlanes, slots: Slots, raw: RawKeys | None, layer: int, eps: float,
) -> Tensor:  # fmt: skip
    """As `qk_norm_rope_reference`, with one rounding at the end.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit, there is no such layer, or a row is longer than
            the tile.

    """
    check_projections("qk_norm_rope", {"q": q, "k": k, "v": v}, {"q_weight": q_weight, "k_weight": k_weight})
    _check("qk_norm_rope", v, freqs, planes, slots, raw, layer)
    return _launch(q, k, v, q_weight, k_weight, freqs, planes, slots, raw, layer, eps)


def write_kv(
    k: Tensor, v: Tensor, weight: Tensor, freqs: RopeFreqs,
    planes: KVPlanes, slots: Slots, raw: RawKeys | None, layer: int, eps: float,
) -> None:  # fmt: skip
    """As `write_kv_reference`. Raises like `qk_norm_rope`."""
    check_projections("write_kv", {"k": k, "v": v}, {"weight": weight})
    _check("write_kv", v, freqs, planes, slots, raw, layer)
    _launch(None, k, v, None, weight, freqs, planes, slots, raw, layer, eps)


def _launch(
    q: Tensor | None, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor, freqs: RopeFreqs,
    planes: KVPlanes, slots: Slots, raw: RawKeys | None, layer: int, eps: float,
) -> Tensor:  # fmt: skip
    return _qk_norm_rope(
        q, k, v, q_weight, k_weight, torch.view_as_real(freqs.frame), torch.view_as_real(freqs.spatial),
        planes.keys, planes.values, planes.key_scales, planes.value_scales, slots.start,
        layer_slots(slots.mapping, layer),
        None if raw is None else raw.plane, None if raw is None else raw.slots.start,
        None if raw is None else layer_slots(raw.slots.mapping, layer), layer, eps,
    )  # fmt: skip


@torch.library.custom_op(
    "longtake::qk_norm_rope",
    mutates_args=("keys", "values", "key_scales", "value_scales", "raw"),
    schema="(Tensor? q, Tensor k, Tensor v, Tensor? q_weight, Tensor k_weight, Tensor frame, Tensor spatial, "
    "Tensor(a!) keys, Tensor(b!) values, Tensor(c!)? key_scales, Tensor(d!)? value_scales, Tensor start, "
    "Tensor mapping, Tensor(e!)? raw, Tensor? raw_start, Tensor? raw_mapping, int layer, float eps) -> Tensor",
)
def _qk_norm_rope(
    q: Tensor | None, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor, frame: Tensor,
    spatial: Tensor, keys: Tensor, values: Tensor, key_scales: Tensor | None, value_scales: Tensor | None,
    start: Tensor, mapping: Tensor, raw: Tensor | None, raw_start: Tensor | None, raw_mapping: Tensor | None,
    layer: int, eps: float,
) -> Tensor:  # fmt: skip
    batch, tokens, _ = k.shape
    dim, unused = keys.shape[3], k_weight
    queries = _empty_queries(q, k, dim)
    _qk_norm_rope_kernel[(tokens, batch)](
        _or(q, unused), k, v, _or(q_weight, unused), k_weight, frame, spatial, queries,
        keys, values, _or(key_scales, unused), _or(value_scales, unused), start, mapping, _or(raw, unused),
        _or(raw_start, unused), _or(raw_mapping, unused), tokens, 0 if q is None else q.stride(1),
        k.stride(1), v.stride(1), spatial.shape[0], keys.shape[1], 0 if raw is None else raw.shape[1], layer, eps,
        MOVING=2 * frame.shape[2], QUERIES=q is not None, RAW=raw is not None,
        INT8_KEYS=key_scales is not None, INT8_VALUES=value_scales is not None,
        **_blocks("qk_norm_rope", k, dim),
    )  # fmt: skip
    return queries


@_qk_norm_rope.register_fake
def _(
    q: Tensor | None, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor, frame: Tensor,
    spatial: Tensor, keys: Tensor, *rest: object,
) -> Tensor:  # fmt: skip
    return _empty_queries(q, k, keys.shape[3])


def _empty_heads(x: Tensor, dim: int) -> Tensor:
    return torch.empty((*x.shape[:2], x.shape[2] // dim, dim), dtype=x.dtype, device=x.device)


def _empty_queries(q: Tensor | None, k: Tensor, dim: int) -> Tensor:
    """None of them where there is no `q`: an operator that writes into its arguments returns one tensor."""
    return k.new_empty(0) if q is None else _empty_heads(q, dim)


def _or(x: Tensor | None, unused: Tensor) -> Tensor:
    """A pointer that the kernel does not follow is one to something else."""
    return unused if x is None else x


def _blocks(op: str, x: Tensor, dim: int) -> dict[str, int]:
    """Sizes of a row and of the blocks that hold it. Raises ValueError if the tile is smaller."""
    heads, tile = x.shape[2] // dim, tile_for(TILES, architecture(x.device), op)
    block_h, block_d = triton.next_power_of_2(heads), triton.next_power_of_2(dim)
    if block_h * block_d > tile.n:
        raise ValueError(
            f"{op}: {heads} heads of {dim} channels; its tile takes at most {tile.n} in powers of two"
        )
    return {"H": heads, "D": dim, "BLOCK_H": block_h, "BLOCK_D": block_d, **tile.options}


def _check(
    op: str, v: Tensor, freqs: RopeFreqs, planes: KVPlanes, slots: Slots, raw: RawKeys | None, layer: int
) -> None:
    check_freqs(op, v, freqs)
    check_planes(op, v, planes, layer)
    rows, frames, moving = freqs.frame.shape[0], freqs.frame.shape[1], 2 * freqs.frame.shape[2]
    check_mapping(op, slots, rows, frames, planes.layers, v.device)
    if raw is not None:
        check_raw_plane(op, raw.plane, planes, moving, v.dtype)
        check_mapping(op, raw.slots, rows, frames, planes.layers, v.device)


def aot_cases() -> Sequence[AotCase]:
    """The real model in bf16: with and without raw keys, keys only, and INT8 keys and values."""
    plain = {"QUERIES": True, "RAW": False, "INT8_KEYS": False, "INT8_VALUES": False}
    int8 = plain | {"RAW": True, "INT8_KEYS": True}
    forms = {
        "qk_norm_rope": plain,
        "qk_norm_rope_raw": plain | {"RAW": True},
        "qk_norm_rope_int8": int8,
        "qk_norm_rope_int8_kv": int8 | {"INT8_VALUES": True},
        "write_kv": plain | {"QUERIES": False},
        "write_kv_int8": int8 | {"QUERIES": False},
        "write_kv_int8_kv": int8 | {"QUERIES": False, "INT8_VALUES": True},
    }
    return [_case(f"{name}_sm{sm}", sm, flags) for sm in ARCHITECTURES for name, flags in forms.items()]


SIZES = {"H": 12, "D": 128, "BLOCK_H": 16, "BLOCK_D": 128}
"""Of the real model."""


def _case(name: str, sm: int, flags: dict[str, bool]) -> AotCase:
    half, tile = FLOATS[torch.bfloat16], TILES[sm]
    pointers = dict.fromkeys(("p_q", "p_k", "p_v", "p_q_weight", "p_k_weight"), half)
    pointers |= {"p_frame": "*fp32", "p_spatial": "*fp32", "p_queries": half}
    pointers |= {
        "p_keys": "*i8" if flags["INT8_KEYS"] else half,
        "p_values": "*i8" if flags["INT8_VALUES"] else half,
        "p_key_scales": "*fp32",
        "p_value_scales": "*fp32",
    }
    pointers |= {"p_start": "*i32", "p_mapping": "*i32", "p_raw": half}
    pointers |= {"p_raw_start": "*i32", "p_raw_mapping": "*i32"}
    strides = dict.fromkeys(("q_row", "k_row", "v_row"), "i32")
    sizes = {"frame_tokens": "i32", "pool_tokens": "i32", "raw_tokens": "i32", "layer": "i32", "eps": "fp32"}
    return AotCase(
        name=name,
        kernel=_qk_norm_rope_kernel,
        architecture=sm,
        tile=tile,
        arguments=pointers | {"T": "i32"} | strides | sizes,
        constants=flags | SIZES | {"MOVING": 44},
        aligned=(*(set(pointers) - {"p_start", "p_mapping", "p_raw_start", "p_raw_mapping", "p_frame"}), *strides),
    )  # fmt: skip
