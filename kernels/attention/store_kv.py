"""Keys and values put into slots that were chosen after they were made: from keys that `stage_kv` has left.

    keys, values   [B, T, H, D], [B, T, H * D]   turned, of one dtype; values may lie beside other projections
    slots          see `kernels.attention.qk_norm_rope`; a kernel inside the pass may have written them

Bytes per token: keys and values read and written, 4 N with N those of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.kv_view import KVPlanes, layer_slots
from kernels.attention.qk_norm_rope import SIZES, TILES, or_unused, quantize_key, row_blocks, store_rows
from kernels.attention.slots import Slots, check_slots
from kernels.rms_norm import check_projections
from kernels.tiles import ARCHITECTURES, AotCase
from kernels.token_rows import FLOATS


def store_kv_reference(keys: Tensor, values: Tensor, planes: KVPlanes, slots: Slots, layer: int) -> None:
    """Put turned keys and values [B, T, H, D] into slots."""
    store_rows(keys, values, planes, slots, layer, None, None)


@triton.jit(do_not_specialize=["layer"])
def _store_kv_kernel(
    p_k: tl.tensor, p_v: tl.tensor, p_keys: tl.tensor, p_values: tl.tensor, p_key_scales: tl.tensor,
    p_start: tl.tensor, p_mapping: tl.tensor, T: tl.tensor, v_row: tl.tensor, frame_tokens: tl.tensor,
    pool_tokens: tl.tensor, layer: tl.tensor, H: tl.constexpr, D: tl.constexpr, INT8: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """A program: one token of one row."""
    i_token, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_row = i_b * T + i_token
    slot = tl.load(p_mapping + i_b * (T // frame_tokens) + i_token // frame_tokens)
    if slot >= 0:
        o_h, o_d = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
        o_x = o_h[:, None] * D + o_d[None, :]
        m_x = (o_h < H)[:, None] & (o_d < D)[None, :]
        token = tl.load(p_start + i_b).to(tl.int64) + slot * frame_tokens + i_token % frame_tokens
        o_pool = (layer.to(tl.int64) * pool_tokens + token) * (H * D)
        b_v = tl.load(p_v + i_row * v_row + o_x, mask=m_x, other=0.0)
        tl.store(tl.multiple_of(p_values + o_pool, 16) + o_x, b_v, mask=m_x)
        b_k = tl.load(p_k + i_row * H * D + o_x, mask=m_x, other=0.0)
        if INT8:
            b_levels, b_scale = quantize_key(b_k.to(tl.float32), False, 2, BLOCK_H, BLOCK_D)
            tl.store(tl.multiple_of(p_keys + o_pool, 16) + o_x, b_levels, mask=m_x)
            o_scale = (layer.to(tl.int64) * H + o_h) * pool_tokens + token
            tl.store(p_key_scales + o_scale, b_scale, mask=o_h < H)
        else:
            tl.store(tl.multiple_of(p_keys + o_pool, 16) + o_x, b_k, mask=m_x)


def store_kv(keys: Tensor, values: Tensor, planes: KVPlanes, slots: Slots, layer: int) -> None:
    """As `store_kv_reference`; values may also be [B, T, H * D]. Raises like `write_kv`."""
    rows = values.flatten(2) if values.dim() == 4 else values
    check_projections("store_kv", {"keys": keys.flatten(2), "values": rows}, {})
    check_slots("store_kv", rows, planes, slots, layer)
    _store_kv(
        keys, rows, planes.keys, planes.values, planes.key_scales, slots.start, layer_slots(slots.mapping, layer),
        layer,
    )  # fmt: skip


@torch.library.custom_op(
    "longtake::store_kv",
    mutates_args=("keys", "values", "key_scales"),
    schema="(Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, Tensor(c!)? key_scales, Tensor start, "
    "Tensor mapping, int layer) -> ()",
)
def _store_kv(
    k: Tensor, v: Tensor, keys: Tensor, values: Tensor, key_scales: Tensor | None, start: Tensor,
    mapping: Tensor, layer: int,
) -> None:  # fmt: skip
    batch, tokens = k.shape[:2]
    _store_kv_kernel[(tokens, batch)](
        k, v, keys, values, or_unused(key_scales, k), start, mapping, tokens, v.stride(1),
        tokens // mapping.shape[1], keys.shape[1], layer, INT8=key_scales is not None,
        **row_blocks("store_kv", v, keys.shape[3]),
    )  # fmt: skip


@_store_kv.register_fake
def _(*arguments: object) -> None:
    return None


def aot_cases() -> Sequence[AotCase]:
    """The real model in bf16, with keys in bf16 and in INT8."""
    return [_case(sm, int8=int8) for sm in ARCHITECTURES for int8 in (False, True)]


def _case(sm: int, *, int8: bool) -> AotCase:
    half, tile = FLOATS[torch.bfloat16], TILES[sm]
    pointers = {"p_k": half, "p_v": half, "p_keys": "*i8" if int8 else half, "p_values": half}
    pointers |= {"p_key_scales": "*fp32", "p_start": "*i32", "p_mapping": "*i32"}
    sizes = dict.fromkeys(("T", "v_row", "frame_tokens", "pool_tokens", "layer"), "i32")
    return AotCase(
        name=f"store_kv{'_int8' if int8 else ''}_sm{sm}",
        kernel=_store_kv_kernel,
        architecture=sm,
        tile=tile,
        arguments=pointers | sizes,
        constants={"INT8": int8} | SIZES,
        aligned=("p_k", "p_v", "p_keys", "p_values", "p_key_scales", "v_row"),
    )  # fmt: skip
