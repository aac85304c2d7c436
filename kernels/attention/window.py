"""Attention of a batch of rows, each over its own run of a KV pool: one kernel for windows and for prompts.

    scores = q k^T / sqrt(D), and the last key's + its log multiplicity;  output = softmax(scores) v

    queries [B, T, H, D]            fp32, fp16 or bf16
    keys    [layers, tokens, H, D]  as the queries, or INT8 with a scale for each head of a token
    values  [layers, tokens, H, D]  the same

A softmax ignores the order of keys, so slots are read as they lie. A program covers a tile of queries of one head
and one of several splits of the row's keys. A second kernel merges splits by the logarithms of their sums, in
their order and without atomics: equal calls give equal bits. Where a run lies and how much of it is attended is
read from device memory, and into how many splits it is cut follows from the most that can be: a launch is the same
for every run and fill.

FLOPs: 4 T S H D a row; 16.2 T for 4680 queries over 18720 keys in 30 layers. Bytes: a head's query tiles run side
by side, so its keys and values are read from memory once (4 S H D in 16 bits) and from the cache after that; a
split adds 8 D bytes for a query's head, written and read.

INT8 keys are SageAttention's (Zhang et al. 2024), but with a scale for each token in place of one for each tile:
whoever writes a key knows it, and slots of any length need no tiles of their own. q is rounded here, as it is
loaded. INT8 values are for memory: they become fp16 beside 16-bit queries, and fp32 beside fp32 ones, before they
are multiplied by weights. With `fp16_sums` the products of a tile's weights and values are of fp16 and are summed
in fp16, and tiles in fp32: for cards whose tensor cores halve their rate where they sum in fp32 (GeForce of sm_86,
89 and 120). Such a sum over N keys is off by at most N / 2048 of that of the absolute products. INT8 values are at
most 127 there, whatever their scales; others must stay below 65504 / N, which is 1023 at 64 keys a tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.kv_view import ALIGNMENT_BYTES, KVView
from kernels.attention.lse_merge import head_mask, merge_case, merge_splits
from kernels.attention.window_tiles import SplitConfig, config_for, tiles_for, uses_descriptors
from kernels.quantize import quantize_tile, round_to_int8
from kernels.tiles import ARCHITECTURES, FP16_SUMS, INTERPRETER, AotCase, Tile, architecture

LOG2_E = tl.constexpr(math.log2(math.e))

SCORES_AT_ONCE = 1 << 26
"""Scores that the reference holds at a time: 256 MiB in fp32."""

WIDEST_HEAD = 128
"""Channels of a head for which there are registers."""


def window_attention(
    queries: Tensor, kv: KVView, layer: int, *, fp16_sums: bool = False, num_splits: int | None = None,
    config: SplitConfig | None = None,
) -> Tensor:  # fmt: skip
    """Attend each row's queries over what it addresses.

    Args:
        queries: [B, T, H, D], contiguous and rotated.
        kv: of the B rows.
        layer: whose keys and values.
        fp16_sums: multiply weights and values in fp16, and sum them in fp16 over a tile of keys.
        num_splits: instead of what fills the device; 1 for prompts, which are too short to be cut up.
        config: instead of that of `config_for`.

    Returns:
        [B, T, H, D] in the dtype of `queries`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the device has no tile.

    """
    _check(queries, kv, layer)
    chosen = config or config_for(queries, kv, fp16_sums)
    if num_splits is not None:
        chosen = replace(chosen, num_splits=num_splits)
    return _attend(
        queries, kv.planes.keys, kv.planes.values, kv.planes.key_scales, kv.planes.value_scales, kv.bounds,
        kv.last_log, layer, [chosen.tile.m, chosen.tile.n, chosen.tile.warps, chosen.tile.stages],
        chosen.num_splits, chosen.descriptors, fp16_sums,
    )  # fmt: skip


def window_attention_reference(queries: Tensor, kv: KVView, layer: int) -> Tensor:
    """The same in plain PyTorch; scores and sums in fp32. Reads the rows' bounds back."""
    rows = [_attend_row(q, kv, row, layer) for row, q in enumerate(queries.float())]
    return torch.stack(rows).to(queries.dtype)


def _attend_row(q: Tensor, kv: KVView, row: int, layer: int) -> Tensor:
    keys, values, key_scales, value_scales = kv.attended(row, layer)
    if key_scales is not None:
        q, keys = round_to_int8(q), keys * key_scales.T.unsqueeze(-1)
    if value_scales is not None:
        values = values * value_scales.T.unsqueeze(-1)
    k, v = keys.float().permute(1, 2, 0), values.float().transpose(0, 1)
    parts = []
    for part in q.split(max(1, SCORES_AT_ONCE // (keys.shape[0] * keys.shape[1]))):
        scores = part.transpose(0, 1) @ k * q.shape[-1] ** -0.5
        if kv.last_log is not None:
            scores[..., -1] += kv.last_log[row]
        parts.append((scores.softmax(dim=-1) @ v).transpose(0, 1))
    return torch.cat(parts)


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
        b_rows = tl.load(p_rows, mask=head_mask(start + o_n < stop, D, BLOCK_D), other=0.0)
    return b_rows


@triton.jit
def _attend_tile(
    b_out: tl.tensor, b_max: tl.tensor, b_sum: tl.tensor, unit: tl.tensor, b_q: tl.tensor, b_factor: tl.tensor,
    keys: tl.tensor, values: tl.tensor, p_key_scales: tl.tensor, p_value_scales: tl.tensor,
    start: tl.tensor, stop: tl.tensor, last: tl.tensor, last_log2: tl.tensor,
    ROW: tl.constexpr, N: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    INT8_KEYS: tl.constexpr, INT8_VALUES: tl.constexpr, FP16_SUMS: tl.constexpr, WEIGHTS: tl.constexpr,
    PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Take keys into a running softmax, in powers of two: output [M, BLOCK_D], largest score and sum [M].

    INT8 values, and the output with them, are in units of their largest scale so far: so they are at most 127 in
    fp16, whatever the scales.
    """
    o_n = start + tl.arange(0, N)
    if INT8_VALUES:
        # Before there are scores, which take registers; and scaled, so that it is done once and not in each warp.
        b_v = _load_rows(values, start, stop, ROW, N, D, BLOCK_D, DESCRIPTORS)
        b_scale = tl.load(p_value_scales + o_n, mask=o_n < stop, other=0.0)
        new_unit = tl.maximum(unit, tl.max(b_scale, 0))
        b_v = (b_v.to(tl.float32) * (b_scale / new_unit)[:, None]).to(WEIGHTS)
    b_k = _load_rows(keys, start, stop, ROW, N, D, BLOCK_D, DESCRIPTORS)
    if INT8_KEYS:
        b_scale = tl.load(p_key_scales + o_n, mask=o_n < stop, other=0.0)
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
    b_keep_out = b_keep
    if INT8_VALUES:
        b_keep_out *= unit / new_unit
        unit = new_unit
    else:
        b_v = _load_rows(values, start, stop, ROW, N, D, BLOCK_D, DESCRIPTORS).to(WEIGHTS)
    if FP16_SUMS:
        b_out = b_out * b_keep_out[:, None] + tl.dot(b_p.to(WEIGHTS), b_v, out_dtype=tl.float16).to(tl.float32)
    else:
        b_out = tl.dot(b_p.to(WEIGHTS), b_v, b_out * b_keep_out[:, None], input_precision=PRECISION)
    return b_out, b_new_max, b_sum * b_keep + tl.sum(b_p, 1), unit


@triton.jit(do_not_specialize=["layer", "B", "T"])
def _window_attention_kernel(
    p_q: tl.tensor, p_out: tl.tensor, p_log_sum: tl.tensor, p_keys: tl.tensor, p_values: tl.tensor,
    p_key_scales: tl.tensor, p_value_scales: tl.tensor, p_bounds: tl.tensor, p_last_log: tl.tensor,
    layer: tl.tensor, B: tl.tensor, T: tl.tensor, pool_tokens: tl.tensor, score_scale: tl.tensor,
    H: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, INT8_KEYS: tl.constexpr, INT8_VALUES: tl.constexpr,
    FP16_SUMS: tl.constexpr, FOLDED: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """BLOCK_M queries of a row's head over one of SPLITS splits of its keys."""
    ROW: tl.constexpr = H * D
    # INT8 values become what keeps most of them, and of the weights: fp16 has three bits more than bf16.
    IN_FP16: tl.constexpr = FP16_SUMS or (INT8_VALUES and p_q.dtype.element_ty != tl.float32)
    WEIGHTS: tl.constexpr = tl.float16 if IN_FP16 else p_q.dtype.element_ty
    i_split = tl.program_id(1)
    i_b, i_h = tl.program_id(2) // H, tl.program_id(2) % H

    first, last = tl.load(p_bounds + i_b), tl.load(p_bounds + B + i_b) - 1
    last_log2 = 0.0
    if FOLDED:
        last_log2 = tl.load(p_last_log + i_b) * LOG2_E
    split = tl.cdiv(tl.cdiv(last + 1 - first, BLOCK_N), SPLITS) * BLOCK_N
    begin = first + i_split * split
    stop = tl.minimum(last + 1, begin + split)

    o_layer = layer.to(tl.int64) * pool_tokens * ROW + i_h * D
    p_k, p_v = tl.multiple_of(p_keys + o_layer, 16), tl.multiple_of(p_values + o_layer, 16)
    if DESCRIPTORS:
        keys = tl.make_tensor_descriptor(p_k, [last + 1, D], [ROW, 1], [BLOCK_N, BLOCK_D])
        values = tl.make_tensor_descriptor(p_v, [last + 1, D], [ROW, 1], [BLOCK_N, BLOCK_D])
    else:
        keys, values = p_k, p_v
    o_scales = (layer.to(tl.int64) * H + i_h) * pool_tokens

    i_m = tl.program_id(0) * BLOCK_M
    first_row = (i_b.to(tl.int64) * T + i_m) * H + i_h
    o_m = tl.arange(0, BLOCK_M)
    o_q = (o_m * ROW)[:, None] + tl.arange(0, BLOCK_D)[None, :]
    m_m = i_m + o_m < T
    m_q = head_mask(m_m, D, BLOCK_D)
    b_q = tl.load(p_q + first_row * D + o_q, mask=m_q, other=0.0)
    if INT8_KEYS:
        b_left, b_q_scale = quantize_tile(b_q)
        b_factor = b_q_scale * (score_scale * LOG2_E)
    else:
        b_left = b_q
        b_factor = tl.full([BLOCK_M], score_scale * LOG2_E, tl.float32)
    b_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    unit = 0.0
    for i_n in tl.range(begin, stop, BLOCK_N):
        b_out, b_max, b_sum, unit = _attend_tile(
            b_out, b_max, b_sum, unit, b_left, b_factor, keys, values, p_key_scales + o_scales,
            p_value_scales + o_scales, i_n, stop, last, last_log2, ROW, BLOCK_N, D, BLOCK_D,
            INT8_KEYS, INT8_VALUES, FP16_SUMS, WEIGHTS, PRECISION, DESCRIPTORS,
        )  # fmt: skip

    # A split without keys has the sum 0 and the largest score -inf, and weighs nothing in merging.
    b_sum = tl.where(b_sum > 0, b_sum, 1.0)
    b_out /= b_sum[:, None]
    if INT8_VALUES:
        b_out *= unit
    if SPLITS > 1:
        first_row += i_split.to(tl.int64) * B * T * H
        tl.store(p_log_sum + first_row + o_m * H, b_max + tl.log2(b_sum), mask=m_m)
    tl.store(p_out + first_row * D + o_q, b_out.to(p_out.dtype.element_ty), mask=m_q)


@torch.library.custom_op(
    "longtake::window_attention",
    mutates_args=(),
    schema="(Tensor queries, Tensor keys, Tensor values, Tensor? key_scales, Tensor? value_scales, Tensor bounds, "
    "Tensor? last_log, int layer, int[] tile, int num_splits, bool descriptors, bool fp16_sums) -> Tensor",
)
def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, key_scales: Tensor | None, value_scales: Tensor | None,
    bounds: Tensor, last_log: Tensor | None, layer: int, tile: Sequence[int], num_splits: int, descriptors: bool,
    fp16_sums: bool,
) -> Tensor:  # fmt: skip
    """Launch; see `window_attention`. `tile` is m, n, warps and stages."""
    batch, tokens, heads, dim = queries.shape
    block_m, block_n, warps, stages = tile
    output = torch.empty_like(queries)
    parts, log_sums = output, output
    if num_splits > 1:
        parts = torch.empty(num_splits, *queries.shape, dtype=torch.float32, device=queries.device)
        log_sums = torch.empty(parts.shape[:-1], dtype=torch.float32, device=queries.device)
    if descriptors:
        triton.set_allocator(_scratch)
    _window_attention_kernel[(triton.cdiv(tokens, block_m), num_splits, batch * heads)](
        queries, parts, log_sums, keys, values, queries if key_scales is None else key_scales,
        queries if value_scales is None else value_scales, bounds, queries if last_log is None else last_log,
        layer, batch, tokens, keys.shape[1], dim**-0.5, H=heads, D=dim, SPLITS=num_splits,
        INT8_KEYS=key_scales is not None, INT8_VALUES=value_scales is not None, FP16_SUMS=fp16_sums,
        FOLDED=last_log is not None, PRECISION=_precision(queries.dtype), DESCRIPTORS=descriptors,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=_block_dim(dim, keys.dtype),
        **Tile(block_m, block_n, warps, stages).options,
    )  # fmt: skip
    if num_splits > 1:
        merge_splits(parts, log_sums, output)
    return output


@_attend.register_fake
def _(queries: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(queries)


def _scratch(nbytes: int, alignment: int, stream: int | None) -> Tensor:
    """Memory in which programs write their descriptors; the allocator reuses it only behind them on the stream."""
    return torch.empty(nbytes, dtype=torch.int8, device="cuda")


def _block_dim(dim: int, keys: torch.dtype) -> int:
    """Channels of a head, rounded up to what a matrix instruction sums at once."""
    return max(32 if keys == torch.int8 else 16, triton.next_power_of_2(dim))


def _precision(dtype: torch.dtype) -> str:
    return "tf32x3" if dtype == torch.float32 else "tf32"


def _check(queries: Tensor, kv: KVView, layer: int) -> None:
    batch, _, heads, dim = queries.shape
    keys, values = kv.planes.keys, kv.planes.values
    narrow = min((keys.dtype, values.dtype), key=lambda dtype: dtype.itemsize)
    if dim > WIDEST_HEAD or dim * narrow.itemsize % ALIGNMENT_BYTES:
        raise ValueError(
            f"heads of {dim} channels in {narrow}; window_attention takes at most {WIDEST_HEAD}, and a "
            f"multiple of {ALIGNMENT_BYTES} bytes"
        )
    if kv.rows != batch or keys.shape[-2:] != (heads, dim):
        raise ValueError(
            f"queries {list(queries.shape)} do not fit {kv.rows} rows with {keys.shape[-2]} heads of "
            f"{keys.shape[-1]} channels"
        )
    kv.planes.require_layer("window_attention", layer)
    if not {keys.dtype, values.dtype} <= {queries.dtype, torch.int8}:
        raise ValueError(f"queries in {queries.dtype}, keys in {keys.dtype} and values in {values.dtype}")
    if not queries.is_contiguous():
        raise ValueError(
            f"queries must be contiguous; got {list(queries.shape)} with strides {list(queries.stride())}"
        )
    if queries.device != keys.device:
        raise ValueError(f"queries on {queries.device}, keys on {keys.device}")
    if architecture(queries.device) == INTERPRETER and queries.dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter multiplies bf16 wrongly; give it fp16 or fp32")


class Kind(NamedTuple):
    """Dtypes of keys, of values and of queries, and whether values are summed in fp16."""

    keys: torch.dtype
    values: torch.dtype
    queries: torch.dtype
    fp16_sums: bool = False


BF16, FP16, FP32, INT8 = torch.bfloat16, torch.float16, torch.float32, torch.int8

KINDS = {
    "bf16": Kind(BF16, BF16, BF16),
    "fp16": Kind(FP16, FP16, FP16),
    "fp32": Kind(FP32, FP32, FP32),
    "int8_bf16": Kind(INT8, BF16, BF16),
    "int8_fp16": Kind(INT8, FP16, FP16),
    "int8_kv_bf16": Kind(INT8, INT8, BF16),
    "int8_kv_fp16": Kind(INT8, INT8, FP16),
    "int8_v_bf16": Kind(BF16, INT8, BF16),
    "fp16_sums_bf16": Kind(BF16, BF16, BF16, fp16_sums=True),
    "fp16_sums_int8_bf16": Kind(INT8, BF16, BF16, fp16_sums=True),
    "fp16_sums_int8_v_bf16": Kind(BF16, INT8, BF16, fp16_sums=True),
    "fp16_sums_int8_kv_bf16": Kind(INT8, INT8, BF16, fp16_sums=True),
    "fp16_sums_int8_kv_fp16": Kind(INT8, INT8, FP16, fp16_sums=True),
}

POINTERS = {INT8: "*i8", FP16: "*fp16", BF16: "*bf16", FP32: "*fp32"}


def aot_cases() -> Sequence[AotCase]:
    """Heads of the real model in every dtype, with one split and with several to merge; and a folded prompt."""
    cases = [
        _attention_case(sm, kind, splits)
        for sm in ARCHITECTURES
        for kind in KINDS
        for splits in (1, 2)
        if sm in FP16_SUMS or not KINDS[kind].fp16_sums
    ]
    cases += [_attention_case(sm, "bf16", 1, folded=True) for sm in ARCHITECTURES]
    return cases + [merge_case(sm) for sm in ARCHITECTURES]


def _attention_case(sm: int, name: str, splits: int, *, folded: bool = False) -> AotCase:
    kind = KINDS[name]
    keys, values, queries, fp16_sums = kind
    tile = tiles_for(*kind)[sm]
    half = POINTERS[queries]
    pointers = {"p_q": half, "p_out": half if splits == 1 else "*fp32", "p_log_sum": "*fp32"}
    pointers |= {"p_keys": POINTERS[keys], "p_values": POINTERS[values]}
    pointers |= {"p_key_scales": "*fp32", "p_value_scales": "*fp32", "p_bounds": "*i32", "p_last_log": "*fp32"}
    suffix = f"{'_splits' if splits > 1 else ''}{'_folded' if folded else ''}"
    return AotCase(
        name=f"window_attention_{name}{suffix}_sm{sm}",
        kernel=_window_attention_kernel,
        architecture=sm,
        tile=tile,
        arguments=pointers
        | {"layer": "i32", "B": "i32", "T": "i32", "pool_tokens": "i32", "score_scale": "fp32"},
        constants={
            "H": 12, "D": 128, "SPLITS": splits, "INT8_KEYS": keys == INT8, "INT8_VALUES": values == INT8,
            "FP16_SUMS": fp16_sums, "FOLDED": folded, "PRECISION": _precision(queries),
            "DESCRIPTORS": uses_descriptors(sm, queries), "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_D": 128,
        },
        aligned=tuple(pointers),
        needs=_instructions(sm, kind, tile),
    )  # fmt: skip


def _instructions(sm: int, kind: Kind, tile: Tile) -> tuple[str, ...]:
    """Warp-group ones on sm_90, where a tile has the 64 rows of one for each four warps; on sm_100 its own.

    On both fp32 keys keep to those of a warp, and on sm_100 INT8 keys too before triton 3.9.
    """
    if sm == 100 and kind.queries != FP32:
        return ("UTCIMMA|IMMA", "UTCHMMA") if kind.keys == INT8 else ("UTCHMMA",)
    group = "G" if sm == 90 and tile.m >= 16 * tile.warps else ""
    products = "HMMA.F16" if kind.fp16_sums else f"H{group}MMA"
    return (f"I{group}MMA", products) if kind.keys == INT8 else (products,)
