"""From projections to attention: RMS norm over all heads, RoPE, and the write of keys and values into the slab.

    queries = turn(norm(q) * q_weight, query_turns)        and once more with sink_turns, if there are any
    slab    = turn(norm(k) * k_weight, key_turns), v       at the slots of the pass's blocks

    q, k, v       [B, T, H * D]      rows as the linear layers give them; may lie side by side in one tensor
    weights       [H * D]
    turns         [B, T, D / 2]      complex64 of modulus one (`kernels.attention.rope`)
    queries       [B, T, H, D]
    slot_mapping  [B, blocks] int32  the slab's token at which each of the pass's blocks begins, or `NO_SLOT`
    slab          [..., H, D]        where the `KVViewTable` says; INT8 keys get a scale for each head of a token

`qk_norm_rope` does all of it, `write_kv` the second line only, for a pass made for its keys and values. All is
computed in fp32, and the only rounding is at the end.

Bytes per token, with N = 2 H D those of a row in 16 bits (3 KB at 12 heads of 128): q, k and v read, queries, keys
and values written, 6 N, or 7 N with sink queries; and the turns, 4 D a set, from the L2 cache. INT8 keys take half
an N less and 4 H more. PyTorch's own operators move 18 N for each norm, 10 N for each turn and 4 N to write: 60 N,
or 70 N with sink queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.kv_view import ALIGNMENT_BYTES, NO_SLOT, KVViewTable
from kernels.attention.rope import Turns, apply_rope
from kernels.quantize import quantize_rows, quantize_tile
from kernels.rms_norm import check_projections, rms_norm_reference
from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS

TILES: Tiles = {sm: Tile(m=1, n=2048, warps=4) for sm in ARCHITECTURES} | {INTERPRETER: Tile(m=1, n=2048, warps=1)}
"""A row at a time, of at most `n` channels once heads and channels are rounded up to powers of two."""


class Queries(NamedTuple):
    """Normed and turned, each [B, T, H, D]: to stream positions, and to window positions if asked for."""

    stream: Tensor
    sink: Tensor | None


def qk_norm_rope_reference(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, k_weight: Tensor, turns: Turns,
    table: KVViewTable, slot_mapping: Tensor, layer: int, eps: float,
) -> Queries:  # fmt: skip
    """What the engine's memory does with a layer's projections."""
    write_kv_reference(k, v, k_weight, turns.keys, table, slot_mapping, layer, eps)
    heads = q.shape[-1] // (2 * turns.queries.shape[-1])
    queries = rms_norm_reference(q, q_weight, eps).unflatten(-1, (heads, -1))
    sink = None if turns.sink_queries is None else apply_rope(queries, turns.sink_queries)
    return Queries(apply_rope(queries, turns.queries), sink)


def write_kv_reference(
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    turns: Tensor,
    table: KVViewTable,
    slot_mapping: Tensor,
    layer: int,
    eps: float,
) -> None:
    """Its keys and values only."""
    heads = k.shape[-1] // (2 * turns.shape[-1])
    turned = apply_rope(rms_norm_reference(k, weight, eps).unflatten(-1, (heads, -1)), turns)
    rows = zip(table.lent, turned, v.unflatten(-1, (heads, -1)), slot_mapping.tolist(), strict=True)
    for lent, keys, values, blocks in rows:
        tokens = keys.shape[0] // len(blocks)
        for place, new_keys, new_values in zip(blocks, keys.split(tokens), values.split(tokens), strict=True):
            if place == NO_SLOT:
                continue
            kept = slice(place, place + tokens)
            if lent.key_scales is not None:
                new_keys, scales = quantize_rows(new_keys)
                lent.key_scales[layer].flatten(1)[:, kept] = scales.T
            lent.keys[layer].flatten(0, -3)[kept] = new_keys
            lent.values[layer].flatten(0, -3)[kept] = new_values


@triton.jit
def _normed(
    p_x: tl.tensor, p_weight: tl.tensor, o_x: tl.tensor, m_x: tl.tensor, eps: tl.tensor, DIM: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A row of all heads, [BLOCK_H, BLOCK_D] fp32."""
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_weight = tl.load(p_weight + o_x, mask=m_x, other=0.0).to(tl.float32)
    return b_x * (1.0 / tl.sqrt(tl.sum(b_x * b_x) / DIM + eps)) * b_weight


@triton.jit
def _turned(
    b_x: tl.tensor, p_turns: tl.tensor, D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Neighboring channels turned as one complex number; the turns are the same for every head."""
    o_d = tl.arange(0, BLOCK_D)
    b_turns = tl.load(p_turns + o_d, mask=o_d < D, other=0.0)
    cos, sin = tl.split(tl.reshape(b_turns, (1, BLOCK_D // 2, 2)))
    b_even, b_odd = tl.split(tl.reshape(b_x, (BLOCK_H, BLOCK_D // 2, 2)))
    return tl.reshape(tl.join(b_even * cos - b_odd * sin, b_even * sin + b_odd * cos), (BLOCK_H, BLOCK_D))


@triton.jit
def _slab_row(p_address: tl.tensor, o_slab: tl.tensor, TYPE: tl.constexpr) -> tl.tensor:
    """Pointer to a token in the slab whose address is in memory; aligned, as the wrapper has checked."""
    return tl.multiple_of(tl.load(p_address).to(tl.pointer_type(TYPE)) + o_slab, 16)


@triton.jit(do_not_specialize=["layer"])
def _qk_norm_rope_kernel(
    p_q: tl.tensor, p_k: tl.tensor, p_v: tl.tensor, p_q_weight: tl.tensor, p_k_weight: tl.tensor,
    p_query_turns: tl.tensor, p_key_turns: tl.tensor, p_sink_turns: tl.tensor, p_queries: tl.tensor,
    p_sink_queries: tl.tensor, p_keys: tl.tensor, p_values: tl.tensor, p_key_scales: tl.tensor,
    p_layer_strides: tl.tensor, p_scale_strides: tl.tensor, p_slot_mapping: tl.tensor, T: tl.tensor,
    q_row: tl.tensor, k_row: tl.tensor, v_row: tl.tensor, block_tokens: tl.tensor, blocks: tl.tensor,
    layer: tl.tensor, eps: tl.tensor, H: tl.constexpr, D: tl.constexpr, QUERIES: tl.constexpr,
    SINK: tl.constexpr, INT8: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """A program: one token of one stream."""
    i_token, i_stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_row = i_stream * T + i_token
    o_h, o_d = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    o_x = o_h[:, None] * D + o_d[None, :]
    m_x = (o_h < H)[:, None] & (o_d < D)[None, :]
    if QUERIES:
        b_q = _normed(p_q + i_row * q_row, p_q_weight, o_x, m_x, eps, H * D)
        b_turned = _turned(b_q, p_query_turns + i_row * D, D, BLOCK_H, BLOCK_D)
        tl.store(p_queries + i_row * H * D + o_x, b_turned.to(p_queries.dtype.element_ty), mask=m_x)
        if SINK:
            b_sink = _turned(b_q, p_sink_turns + i_row * D, D, BLOCK_H, BLOCK_D)
            tl.store(p_sink_queries + i_row * H * D + o_x, b_sink.to(p_queries.dtype.element_ty), mask=m_x)
    place = tl.load(p_slot_mapping + i_stream * blocks + i_token // block_tokens)
    if place >= 0:
        slab_token = place.to(tl.int64) + i_token % block_tokens
        o_slab = layer * tl.load(p_layer_strides + i_stream) + slab_token * H * D
        b_v = tl.load(p_v + i_row * v_row + o_x, mask=m_x, other=0.0)
        tl.store(_slab_row(p_values + i_stream, o_slab, p_v.dtype.element_ty) + o_x, b_v, mask=m_x)
        b_k = _normed(p_k + i_row * k_row, p_k_weight, o_x, m_x, eps, H * D)
        b_k = _turned(b_k, p_key_turns + i_row * D, D, BLOCK_H, BLOCK_D)
        if INT8:
            b_levels, b_scale = quantize_tile(b_k)
            tl.store(_slab_row(p_keys + i_stream, o_slab, tl.int8) + o_x, b_levels, mask=m_x)
            scale_stride = tl.load(p_scale_strides + i_stream)
            p_scales = tl.load(p_key_scales + i_stream).to(tl.pointer_type(tl.float32)) + layer * scale_stride
            tl.store(p_scales + o_h * (scale_stride // H) + slab_token, b_scale, mask=o_h < H)
        else:
            p_slab = _slab_row(p_keys + i_stream, o_slab, p_k.dtype.element_ty)
            tl.store(p_slab + o_x, b_k.to(p_k.dtype.element_ty), mask=m_x)


def qk_norm_rope(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, k_weight: Tensor, turns: Turns,
    table: KVViewTable, slot_mapping: Tensor, layer: int, eps: float,
) -> Queries:  # fmt: skip
    """As `qk_norm_rope_reference`, with one rounding at the end.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit, there is no such layer in a slab, or a row is
            longer than the tile.

    """
    rows = {"q": q, "k": k, "v": v}
    check_projections("qk_norm_rope", rows, {"q_weight": q_weight, "k_weight": k_weight})
    _check_turns("qk_norm_rope", q, {name: turn for name, turn in turns._asdict().items() if turn is not None})
    _check_slabs("qk_norm_rope", v, turns.keys, table, slot_mapping, layer)
    queries = _qk_norm_rope(
        q, k, v, q_weight, k_weight, turns.queries, turns.keys, turns.sink_queries, *_tensors(table), slot_mapping,
        layer, eps, table.lent[0].key_scales is not None,
    )  # fmt: skip
    return Queries(queries[0], queries[1] if turns.sink_queries is not None else None)


def write_kv(
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    turns: Tensor,
    table: KVViewTable,
    slot_mapping: Tensor,
    layer: int,
    eps: float,
) -> None:
    """As `write_kv_reference`. Raises like `qk_norm_rope`."""
    check_projections("write_kv", {"k": k, "v": v}, {"weight": weight})
    _check_turns("write_kv", k, {"turns": turns})
    _check_slabs("write_kv", v, turns, table, slot_mapping, layer)
    _qk_norm_rope(
        None, k, v, None, weight, None, turns, None, *_tensors(table), slot_mapping, layer, eps,
        table.lent[0].key_scales is not None,
    )  # fmt: skip


@torch.library.custom_op(
    "longtake::qk_norm_rope",
    mutates_args=("keys", "values", "key_scales"),
    schema="(Tensor? q, Tensor k, Tensor v, Tensor? q_weight, Tensor k_weight, Tensor? query_turns, "
    "Tensor key_turns, Tensor? sink_turns, Tensor(a!) keys, Tensor(b!) values, Tensor(c!) key_scales, "
    "Tensor layer_strides, Tensor scale_strides, Tensor slot_mapping, int layer, float eps, bool int8) "
    "-> Tensor[]",
)
def _qk_norm_rope(
    q: Tensor | None, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor,
    query_turns: Tensor | None, key_turns: Tensor, sink_turns: Tensor | None,
    keys: Tensor, values: Tensor, key_scales: Tensor, layer_strides: Tensor, scale_strides: Tensor,
    slot_mapping: Tensor, layer: int, eps: float, int8: bool,
) -> list[Tensor]:  # fmt: skip
    batch, tokens, _ = k.shape
    dim = 2 * key_turns.shape[-1]
    queries = _empty_queries(q, dim, sink_turns)
    blocks, unused = slot_mapping.shape[1], k_weight
    _qk_norm_rope_kernel[(tokens, batch)](
        _given(q, unused), k, v, _given(q_weight, unused), k_weight,
        _real(query_turns, unused), _real(key_turns, unused), _real(sink_turns, unused),
        queries[0] if queries else unused, queries[-1] if queries else unused,
        keys, values, key_scales, layer_strides, scale_strides, slot_mapping,
        tokens, 0 if q is None else q.stride(1), k.stride(1), v.stride(1), tokens // blocks, blocks, layer, eps,
        QUERIES=q is not None, SINK=sink_turns is not None, INT8=int8, **_cut(k, k.shape[2] // dim, dim),
    )  # fmt: skip
    return queries


@_qk_norm_rope.register_fake
def _(
    q: Tensor | None, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor,
    query_turns: Tensor | None, key_turns: Tensor, sink_turns: Tensor | None, *rest: object,
) -> list[Tensor]:  # fmt: skip
    return _empty_queries(q, 2 * key_turns.shape[-1], sink_turns)


def _empty_queries(q: Tensor | None, dim: int, sink_turns: Tensor | None) -> list[Tensor]:
    if q is None:
        return []
    shape = (q.shape[0], q.shape[1], q.shape[2] // dim, dim)
    count = 1 if sink_turns is None else 2
    return [torch.empty(shape, dtype=q.dtype, device=q.device) for _ in range(count)]


def _tensors(table: KVViewTable) -> tuple[Tensor, ...]:
    return table.keys, table.values, table.key_scales, table.layer_strides, table.scale_strides


def _given(x: Tensor | None, unused: Tensor) -> Tensor:
    """A pointer that the kernel does not follow is one to something else."""
    return unused if x is None else x


def _real(turns: Tensor | None, unused: Tensor) -> Tensor:
    return unused if turns is None else torch.view_as_real(turns)


def _cut(x: Tensor, heads: int, dim: int) -> dict[str, int]:
    """Sizes of a row and of the blocks that hold it. Raises ValueError if the tile is smaller."""
    tile = tile_for(TILES, architecture(x.device), "qk_norm_rope")
    block_h, block_d = triton.next_power_of_2(heads), triton.next_power_of_2(dim)
    if block_h * block_d > tile.n:
        raise ValueError(
            f"qk_norm_rope: {heads} heads of {dim} channels; its tile takes at most {tile.n} in powers of two"
        )
    return {"H": heads, "D": dim, "BLOCK_H": block_h, "BLOCK_D": block_d, **tile.options}


def _check_turns(op: str, rows: Tensor, turns: dict[str, Tensor]) -> None:
    batch, tokens, channels = rows.shape
    for name, x in turns.items():
        whole = x.dim() == 3 and x.shape[:2] == (batch, tokens) and x.shape[2] > 0
        if not whole or channels % (2 * x.shape[2]) or not x.is_contiguous() or x.dtype != torch.complex64:
            raise ValueError(
                f"{op}: turns for {name} must be contiguous complex64 [{batch}, {tokens}, D / 2] with D a divisor "
                f"of {channels}; got {list(x.shape)} {x.dtype}"
            )
    if len({x.shape for x in turns.values()}) != 1 or any(x.device != rows.device for x in turns.values()):
        raise ValueError(
            f"{op}: turns are {[(list(x.shape), x.device) for x in turns.values()]}; rows on {rows.device}"
        )


def _check_slabs(op: str, v: Tensor, turns: Tensor, table: KVViewTable, slot_mapping: Tensor, layer: int) -> None:
    (batch, tokens, channels), dim = v.shape, 2 * turns.shape[2]
    if (
        len(table.lent) != batch
        or slot_mapping.dim() != 2
        or slot_mapping.shape[0] != batch
        or tokens % max(slot_mapping.shape[1], 1)
    ):
        raise ValueError(
            f"{op}: {batch} streams of {tokens} tokens; {len(table.lent)} slabs and slot_mapping "
            f"{list(slot_mapping.shape)}"
        )
    if slot_mapping.dtype != torch.int32 or not slot_mapping.is_contiguous() or slot_mapping.device != v.device:
        raise ValueError(
            f"{op}: slot_mapping must be contiguous int32 on {v.device}; got {slot_mapping.dtype} on "
            f"{slot_mapping.device}"
        )
    slab = table.lent[0].values
    if slab.shape[-2:] != (channels // dim, dim) or (slab.dtype, slab.device) != (v.dtype, v.device):
        raise ValueError(
            f"{op}: slabs hold {list(slab.shape[-2:])} {slab.dtype} on {slab.device}; a token has "
            f"[{channels // dim}, {dim}] {v.dtype} on {v.device}"
        )
    if table.lent[0].keys.dtype not in (v.dtype, torch.int8):
        raise ValueError(f"{op}: keys are kept as {table.lent[0].keys.dtype}; it writes {v.dtype} or INT8")
    if any(not 0 <= layer < lent.keys.shape[0] for lent in table.lent):
        raise ValueError(f"{op}: layer {layer} of slabs with {[lent.keys.shape[0] for lent in table.lent]} layers")
    if channels * table.lent[0].keys.element_size() % ALIGNMENT_BYTES:
        raise ValueError(f"{op}: a token's keys take {channels} channels, no multiple of {ALIGNMENT_BYTES} bytes")


def aot_cases() -> Sequence[AotCase]:
    """The real model in bf16: with and without sink queries, keys only, and INT8 keys."""
    forms = {
        "qk_norm_rope": {"QUERIES": True, "SINK": False, "INT8": False},
        "qk_norm_rope_sink": {"QUERIES": True, "SINK": True, "INT8": False},
        "qk_norm_rope_int8": {"QUERIES": True, "SINK": True, "INT8": True},
        "write_kv": {"QUERIES": False, "SINK": False, "INT8": False},
        "write_kv_int8": {"QUERIES": False, "SINK": False, "INT8": True},
    }
    return [_case(f"{name}_sm{sm}", sm, flags) for sm in ARCHITECTURES for name, flags in forms.items()]


def _case(name: str, sm: int, flags: dict[str, bool]) -> AotCase:
    half, tile = FLOATS[torch.bfloat16], TILES[sm]
    rows = dict.fromkeys(("p_q", "p_k", "p_v", "p_q_weight", "p_k_weight"), half)
    rows |= dict.fromkeys(("p_query_turns", "p_key_turns", "p_sink_turns"), "*fp32")
    rows |= dict.fromkeys(("p_queries", "p_sink_queries"), half)
    table = dict.fromkeys(("p_keys", "p_values", "p_key_scales", "p_layer_strides", "p_scale_strides"), "*i64")
    pointers = rows | table | {"p_slot_mapping": "*i32"}
    strides = dict.fromkeys(("q_row", "k_row", "v_row"), "i32")
    sizes = {"T": "i32", "block_tokens": "i32", "blocks": "i32", "layer": "i32", "eps": "fp32"}
    return AotCase(
        name=name,
        kernel=_qk_norm_rope_kernel,
        architecture=sm,
        tile=tile,
        arguments=pointers | strides | sizes,
        constants=flags | {"H": 12, "D": 128, "BLOCK_H": 16, "BLOCK_D": 128},
        aligned=(*pointers, *strides),
    )  # fmt: skip
