"""Attention of a batch of blocks, each over its own slab or prompt, which a `KVViewTable` lends.

    scores = q k^T / sqrt(D), and the last key's + its log multiplicity;  output = softmax(scores) v

    queries [B, T, H, D]          fp32, fp16 or bf16; keys in the sink may be scored by a second rotation of them
    keys    [layers, S, H, D]     of each stream, as the queries, or INT8 with a scale for each head of a token
    values  [layers, S, H, D]     of each stream, as the queries

A softmax ignores the order of keys, so slots are read as they lie. A program covers a tile of queries of one head,
and one of several splits of the stream's keys: first what of it lies in the sink, then the rest. A second kernel
merges splits by the logarithms of their sums, in their order and without atomics: equal calls give equal bits.

Bytes: a head's query tiles run side by side, so its keys and values are read from memory once and from the cache
after that; a split adds 8 D bytes for a query's head, written and read.

INT8 is SageAttention's (Zhang et al. 2024), but with a scale for each token in place of one for each tile: whoever
writes a key knows it, and slots of any length need no tiles of their own. q is rounded here, as it is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.kv_view import ALIGNMENT_BYTES, KVViewTable
from kernels.attention.lse_merge import MERGE_STEPS, TILES_MERGE, merge_case, merge_kernel, of_head
from kernels.attention.reference import attend_two_reference
from kernels.quantize import quantize_tile, round_to_int8
from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for

LOG2_E = tl.constexpr(math.log2(math.e))

WIDEST_HEAD = 128
"""Channels of a head for which there are registers."""


@dataclass(frozen=True)
class SplitConfig:
    """How the work is cut: the tile, and into how many splits each stream's keys.

    With `descriptors` keys and values are copied by TMA, from descriptors that each program makes: one made by the
    host would hold one slab's address, and the slabs of a batch are told apart on the device.
    """

    tile: Tile
    num_splits: int = 1
    descriptors: bool = False


def window_attention(
    queries: Tensor,
    table: KVViewTable,
    layer: int,
    *,
    sink_queries: Tensor | None = None,
    num_splits: int | None = None,
    split: SplitConfig | None = None,
) -> Tensor:
    """Attend each stream's queries over what it lent.

    Args:
        queries: [B, T, H, D], contiguous, rotated to stream positions.
        table: of the B streams.
        layer: whose keys and values.
        sink_queries: the queries rotated to window positions, where any stream's sink is to be scored by those.
        num_splits: instead of as many as `split_config_for` says. With 1 the bits are equal whatever was lent when
            the call was captured: for prompts, which are too short to be cut up.
        split: instead of that of `split_config_for`.

    Returns:
        [B, T, H, D] in the dtype of `queries`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the device has no tile.

    """
    _check(queries, table, layer, sink_queries)
    chosen = split or split_config_for(queries, table)
    if num_splits is not None:
        chosen = replace(chosen, num_splits=num_splits)
    return _attend(
        queries,
        queries if sink_queries is None else sink_queries,
        table.columns,
        layer,
        table.lent[0].keys.dtype,
        [chosen.tile.m, chosen.tile.n, chosen.tile.warps, chosen.tile.stages],
        chosen.num_splits,
        chosen.descriptors,
    )


def window_attention_reference(
    queries: Tensor, table: KVViewTable, layer: int, *, sink_queries: Tensor | None = None
) -> Tensor:
    """The same in plain PyTorch, from what the host knows of the table; scores and sums in fp32."""
    first = queries if sink_queries is None else sink_queries
    streams = []
    for q, sink_q, lent in zip(queries.float(), first.float(), table.lent, strict=True):
        keys, values, scales = lent.attended(layer)
        if scales is not None:
            q, sink_q = round_to_int8(q), round_to_int8(sink_q)
            keys = keys * scales.T.unsqueeze(-1)
        streams.append(attend_two_reference(q, sink_q, keys, values, lent.sink, lent.last_log))
    return torch.stack(streams).to(queries.dtype)


# What ptxas 12.9 leaves without a spill, for triton 3.6 and 3.9: benchmarks/results/kernel_table.json.
TILES_16_BIT: Tiles = {
    INTERPRETER: Tile(32, 32, warps=4),
    80: Tile(128, 64, warps=8, stages=3),
    89: Tile(128, 64, warps=8, stages=2),
    90: Tile(128, 128, warps=8, stages=2),
    100: Tile(128, 64, warps=8, stages=3),
    120: Tile(128, 64, warps=8, stages=2),
}

TILES_INT8: Tiles = {
    INTERPRETER: Tile(32, 32, warps=4),
    80: Tile(128, 64, warps=8, stages=3),
    89: Tile(128, 64, warps=8, stages=2),
    90: Tile(128, 128, warps=8, stages=2),
    100: Tile(128, 64, warps=8, stages=3),
    120: Tile(128, 32, warps=8, stages=2),
}

TILES_FP32: Tiles = {INTERPRETER: Tile(32, 32, warps=4)} | {
    sm: Tile(32, 16, warps=8, stages=2) for sm in ARCHITECTURES
}
"""For comparing with plain fp32: products in three parts of TF32, which keep 21 bits (tf32x3)."""

DESCRIPTORS = (90, 100)
"""Where TMA is used: fewer registers than with pointers (performance notes: 187 against 255); not measured."""


MAX_SPLITS = 8


def split_config_for(queries: Tensor, table: KVViewTable) -> SplitConfig:
    """The cut for these sizes on their device; one and the same for equal sizes."""
    chip = architecture(queries.device)
    tile = tile_for(_tiles(table.lent[0].keys.dtype, queries.dtype), chip, "window_attention")
    if chip == INTERPRETER:
        return SplitConfig(tile)
    batch, tokens, heads, _ = queries.shape
    processors = torch.cuda.get_device_properties(queries.device).multi_processor_count
    num_splits = choose_num_splits(
        batch * heads * -(-tokens // tile.m), -(-table.most_filled // tile.n), processors
    )
    return SplitConfig(tile, num_splits, _descriptors(chip, queries.dtype))


def choose_num_splits(query_tiles: int, key_tiles: int, processors: int) -> int:
    """Into how many splits to cut the keys, so that the last wave of programs is full and merging costs less."""

    def steps(num_splits: int) -> float:
        waves = -(-query_tiles * num_splits // processors)
        merging = MERGE_STEPS * num_splits * query_tiles / processors if num_splits > 1 else 0.0
        return waves * -(-key_tiles // num_splits) + merging

    return min(range(1, min(MAX_SPLITS, key_tiles) + 1), key=steps)


def _tiles(keys: torch.dtype, queries: torch.dtype) -> Tiles:
    if keys == torch.int8:
        return TILES_INT8
    return TILES_FP32 if queries == torch.float32 else TILES_16_BIT


@triton.jit
def _load_rows(
    rows: tl.tensor, start: tl.tensor, stop: tl.tensor,
    ROW: tl.constexpr, N: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, DESCRIPTORS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """[N, BLOCK_D] from row `start` on, of a descriptor or of a pointer; no garbage from `stop` on."""
    if DESCRIPTORS:
        b_rows = rows.load([start, 0])
    else:
        o_n = tl.arange(0, N)
        p_first = tl.multiple_of(rows + tl.cast(start, tl.int64) * ROW, 16)
        p_rows = p_first + ((o_n * ROW)[:, None] + tl.arange(0, BLOCK_D)[None, :])
        b_rows = tl.load(p_rows, mask=of_head(start + o_n < stop, D, BLOCK_D), other=0.0)
    return b_rows


@triton.jit
def _attend_tile(
    b_out: tl.tensor, b_max: tl.tensor, b_sum: tl.tensor, b_q: tl.tensor, b_factor: tl.tensor,
    keys: tl.tensor, values: tl.tensor, p_scales: tl.tensor,
    start: tl.tensor, stop: tl.tensor, last: tl.tensor, last_log2: tl.tensor,
    ROW: tl.constexpr, N: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    INT8: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Take keys into a running softmax, in powers of two: output [M, BLOCK_D], largest score and sum [M]."""
    o_n = start + tl.arange(0, N)
    b_k = _load_rows(keys, start, stop, ROW, N, D, BLOCK_D, DESCRIPTORS)
    if INT8:
        b_scale = tl.load(p_scales + o_n, mask=o_n < stop, other=0.0)
        b_score = tl.dot(b_q, tl.trans(b_k), out_dtype=tl.int32).to(tl.float32) * b_scale[None, :]
    else:
        b_score = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    # A branch that all threads take together costs less than an addition to every score.
    if start + N >= stop:
        b_bias = tl.where(o_n < stop, tl.where(o_n == last, last_log2, 0.0), -float("inf"))
        b_score += b_bias[None, :] / b_factor[:, None]
    b_new_max = tl.maximum(b_max, tl.max(b_score, 1) * b_factor)
    b_p = tl.exp2(b_score * b_factor[:, None] - b_new_max[:, None])
    b_keep = tl.exp2(b_max - b_new_max)
    b_v = _load_rows(values, start, stop, ROW, N, D, BLOCK_D, DESCRIPTORS)
    b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_keep[:, None], input_precision=PRECISION)
    return b_out, b_new_max, b_sum * b_keep + tl.sum(b_p, 1)


@triton.jit(do_not_specialize=["layer", "B", "T"])
def _window_attention_kernel(
    p_q: tl.tensor, p_sink_q: tl.tensor, p_out: tl.tensor, p_log_sum: tl.tensor,
    p_keys: tl.tensor, p_values: tl.tensor, p_key_scales: tl.tensor, p_layer_strides: tl.tensor,
    p_scale_strides: tl.tensor, p_filled: tl.tensor, p_sink: tl.tensor, p_last_log: tl.tensor,
    layer: tl.tensor, B: tl.tensor, T: tl.tensor, score_scale: tl.tensor,
    H: tl.constexpr, D: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, NUM_SPLITS: tl.constexpr,
    PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """BLOCK_M queries of a stream's head over one of NUM_SPLITS splits of its keys."""
    INT8: tl.constexpr = tl.int8 == KEY
    ROW: tl.constexpr = H * D
    i_split = tl.program_id(1)
    i_b, i_h = tl.program_id(2) // H, tl.program_id(2) % H

    filled = tl.load(p_filled + i_b)
    sink = tl.minimum(tl.load(p_sink + i_b), filled)
    last_log2 = tl.load(p_last_log + i_b) * LOG2_E
    length = tl.cdiv(tl.cdiv(filled, BLOCK_N), NUM_SPLITS) * BLOCK_N
    first = i_split * length
    stop = tl.minimum(filled, first + length)

    o_layer = layer * tl.load(p_layer_strides + i_b) + i_h * D
    p_k = tl.multiple_of(tl.load(p_keys + i_b).to(tl.pointer_type(KEY)) + o_layer, 16)
    p_v = tl.multiple_of(tl.load(p_values + i_b).to(tl.pointer_type(VALUE)) + o_layer, 16)
    if DESCRIPTORS:
        keys = tl.make_tensor_descriptor(p_k, [filled, D], [ROW, 1], [BLOCK_N, BLOCK_D])
        values = tl.make_tensor_descriptor(p_v, [filled, D], [ROW, 1], [BLOCK_N, BLOCK_D])
    else:
        keys, values = p_k, p_v
    scale_stride = tl.load(p_scale_strides + i_b)
    o_scales = layer * scale_stride + i_h * (scale_stride // H)
    p_scales = tl.load(p_key_scales + i_b).to(tl.pointer_type(tl.float32)) + o_scales

    i_m = tl.program_id(0) * BLOCK_M
    first_row = (i_b.to(tl.int64) * T + i_m) * H + i_h
    o_m = tl.arange(0, BLOCK_M)
    o_q = (o_m * ROW)[:, None] + tl.arange(0, BLOCK_D)[None, :]
    m_m = i_m + o_m < T
    m_q = of_head(m_m, D, BLOCK_D)
    b_factor = tl.full([BLOCK_M], score_scale * LOG2_E, tl.float32)
    b_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    # The split's keys in the sink, then the rest: a loop, for two copies of the one inside take more registers.
    for i_part in tl.range(0, 2):
        p_first = tl.where(i_part == 0, p_sink_q, p_q) + first_row * D
        b_q = tl.load(p_first + o_q, mask=m_q, other=0.0)
        if INT8:
            b_left, b_q_scale = quantize_tile(b_q)
            b_factor = b_q_scale * (score_scale * LOG2_E)
        else:
            b_left = b_q
        begin = tl.where(i_part == 0, first, tl.maximum(first, sink))
        end = tl.where(i_part == 0, tl.minimum(stop, sink), stop)
        for start in tl.range(begin, end, BLOCK_N):
            b_out, b_max, b_sum = _attend_tile(
                b_out, b_max, b_sum, b_left, b_factor, keys, values, p_scales, start, end, filled - 1, last_log2,
                ROW, BLOCK_N, D, BLOCK_D, INT8, PRECISION, DESCRIPTORS,
            )  # fmt: skip

    # A split without keys has the sum 0 and the largest score -inf, and weighs nothing in merging.
    b_sum = tl.where(b_sum > 0, b_sum, 1.0)
    b_out /= b_sum[:, None]
    if NUM_SPLITS > 1:
        first_row += i_split.to(tl.int64) * B * T * H
        tl.store(p_log_sum + first_row + o_m * H, b_max + tl.log2(b_sum), mask=m_m)
    tl.store(p_out + first_row * D + o_q, b_out.to(p_out.dtype.element_ty), mask=m_q)


TRITON_TYPES = {
    torch.int8: tl.int8, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32,
}  # fmt: skip


@torch.library.custom_op(
    "longtake::window_attention",
    mutates_args=(),
    schema="(Tensor queries, Tensor sink_queries, Tensor[] table, int layer, ScalarType key_dtype, int[] tile, "
    "int num_splits, bool descriptors) -> Tensor",
)
def _attend(
    queries: Tensor,
    sink_queries: Tensor,
    table: Sequence[Tensor],
    layer: int,
    key_dtype: torch.dtype,
    tile: Sequence[int],
    num_splits: int,
    descriptors: bool,
) -> Tensor:
    """Launch on the table's tensors; see `window_attention`. `tile` is m, n, warps and stages."""
    batch, tokens, heads, dim = queries.shape
    block_m, block_n, warps, stages = tile
    output = torch.empty_like(queries)
    parts, log_sums = output, output
    if num_splits > 1:
        parts = torch.empty(num_splits, *queries.shape, dtype=torch.float32, device=queries.device)
        log_sums = torch.empty(parts.shape[:-1], dtype=torch.float32, device=queries.device)
    if descriptors:
        triton.set_allocator(_scratch)
    keys, values, key_scales, layer_strides, scale_strides, filled, sink, last_log = table
    _window_attention_kernel[(triton.cdiv(tokens, block_m), num_splits, batch * heads)](
        queries, sink_queries, parts, log_sums, keys, values, key_scales, layer_strides, scale_strides, filled,
        sink, last_log, layer, batch, tokens, dim**-0.5,
        H=heads, D=dim, KEY=TRITON_TYPES[key_dtype], VALUE=TRITON_TYPES[queries.dtype], NUM_SPLITS=num_splits,
        PRECISION=_precision(queries.dtype), DESCRIPTORS=descriptors, BLOCK_M=block_m, BLOCK_N=block_n,
        BLOCK_D=_block_dim(dim, key_dtype), **Tile(block_m, block_n, warps, stages).options,
    )  # fmt: skip
    if num_splits > 1:
        rows, merge = batch * tokens * heads, TILES_MERGE[architecture(queries.device)]
        merge_kernel[(triton.cdiv(rows, merge.m),)](
            parts, log_sums, output, rows, D=dim, NUM_SPLITS=num_splits, BLOCK_M=merge.m,
            BLOCK_D=triton.next_power_of_2(dim), **merge.options,
        )  # fmt: skip
    return output


@_attend.register_fake
def _(
    queries: Tensor,
    sink_queries: Tensor,
    table: Sequence[Tensor],
    layer: int,
    key_dtype: torch.dtype,
    tile: Sequence[int],
    num_splits: int,
    descriptors: bool,
) -> Tensor:
    return torch.empty_like(queries)


def _scratch(nbytes: int, alignment: int, stream: int | None) -> Tensor:
    """Memory in which programs write their descriptors; the allocator reuses it only behind them on the stream."""
    return torch.empty(nbytes, dtype=torch.int8, device="cuda")


def _descriptors(chip: int, dtype: torch.dtype) -> bool:
    return chip in DESCRIPTORS and dtype != torch.float32


def _block_dim(dim: int, keys: torch.dtype) -> int:
    """Channels of a head, rounded up to what a matrix instruction sums at once."""
    return max(32 if keys == torch.int8 else 16, triton.next_power_of_2(dim))


def _precision(dtype: torch.dtype) -> str:
    return "tf32x3" if dtype == torch.float32 else "tf32"


def _check(queries: Tensor, table: KVViewTable, layer: int, sink_queries: Tensor | None) -> None:
    batch, _, heads, dim = queries.shape
    lent = table.lent[0]
    if dim > WIDEST_HEAD or dim * lent.keys.element_size() % ALIGNMENT_BYTES:
        raise ValueError(
            f"heads of {dim} channels in {lent.keys.dtype}; window_attention takes at most {WIDEST_HEAD}, and a "
            f"multiple of {ALIGNMENT_BYTES} bytes"
        )
    if len(table.lent) != batch or lent.keys.shape[-2:] != (heads, dim):
        raise ValueError(
            f"queries {list(queries.shape)} do not fit {len(table.lent)} streams with {lent.keys.shape[-2]} heads "
            f"of {lent.keys.shape[-1]} channels"
        )
    if not 0 <= layer < min(lent.keys.shape[0] for lent in table.lent):
        raise ValueError(f"no layer {layer} in slabs of {[lent.keys.shape[0] for lent in table.lent]}")
    if lent.values.dtype != queries.dtype or lent.keys.dtype not in (queries.dtype, torch.int8):
        raise ValueError(
            f"queries in {queries.dtype}, keys in {lent.keys.dtype} and values in {lent.values.dtype}"
        )
    for x in (queries, sink_queries):
        if x is not None and (x.shape != queries.shape or x.dtype != queries.dtype or not x.is_contiguous()):
            raise ValueError(
                f"queries in both rotations are contiguous, {list(queries.shape)} in {queries.dtype}; "
                f"got {list(x.shape)} in {x.dtype} with strides {x.stride()}"
            )
    if queries.device != table.filled.device or queries.device != lent.keys.device:
        raise ValueError(
            f"queries on {queries.device}, table on {table.filled.device}, keys on {lent.keys.device}"
        )
    if architecture(queries.device) == INTERPRETER and queries.dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter multiplies bf16 wrongly; give it fp16 or fp32")


KINDS = {
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16": (torch.float16, torch.float16),
    "fp32": (torch.float32, torch.float32),
    "int8_bf16": (torch.int8, torch.bfloat16),
    "int8_fp16": (torch.int8, torch.float16),
}
"""Dtypes of keys, and of queries and values."""


def aot_cases() -> Sequence[AotCase]:
    """Heads of the real model in every dtype, whole and in several splits to merge."""
    attention = [
        _attention_case(sm, kind, num_splits) for sm in ARCHITECTURES for kind in KINDS for num_splits in (1, 2)
    ]
    return attention + [merge_case(sm) for sm in ARCHITECTURES]


def _attention_case(sm: int, kind: str, num_splits: int) -> AotCase:
    keys, queries = KINDS[kind]
    tile = _tiles(keys, queries)[sm]
    pointers = dict.fromkeys(("p_q", "p_sink_q", "p_out"), f"*{TRITON_TYPES[queries]}") | {"p_log_sum": "*fp32"}
    if num_splits > 1:
        pointers["p_out"] = "*fp32"
    columns = dict.fromkeys(("p_keys", "p_values", "p_key_scales", "p_layer_strides", "p_scale_strides"), "*i64")
    columns |= {"p_filled": "*i32", "p_sink": "*i32", "p_last_log": "*fp32"}
    return AotCase(
        name=f"window_attention_{kind}{'_splits' if num_splits > 1 else ''}_sm{sm}",
        kernel=_window_attention_kernel,
        architecture=sm,
        tile=tile,
        arguments=pointers | columns | {"layer": "i32", "B": "i32", "T": "i32", "score_scale": "fp32"},
        constants={
            "H": 12, "D": 128, "KEY": TRITON_TYPES[keys], "VALUE": TRITON_TYPES[queries], "NUM_SPLITS": num_splits,
            "PRECISION": _precision(queries), "DESCRIPTORS": _descriptors(sm, queries),
            "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_D": 128,
        },
        aligned=(*pointers, *columns),
        needs=_instructions(sm, keys, tile),
    )  # fmt: skip


def _instructions(sm: int, keys: torch.dtype, tile: Tile) -> tuple[str, ...]:
    """Warp-group ones on sm_90, where a tile has the 64 rows of one for each four warps; on sm_100 its own.

    On both fp32 keys keep to those of a warp, and on sm_100 INT8 keys too before triton 3.9.
    """
    if sm == 100 and keys != torch.float32:
        return ("UTCIMMA|IMMA", "UTCHMMA") if keys == torch.int8 else ("UTCHMMA",)
    group = "G" if sm == 90 and tile.m >= 16 * tile.warps else ""
    return (f"I{group}MMA", f"H{group}MMA") if keys == torch.int8 else (f"H{group}MMA",)
