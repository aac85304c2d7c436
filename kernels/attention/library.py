"""Attention of rows over their runs by a library: `window_attention` elsewhere.

A library is handed the whole plane, and the bounds of a row as cumulative lengths in device memory: so a recorded
graph serves every run at any fill here too. None takes INT8 keys or values, nor a key that stands for several.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.attention.backend import AttentionBackend
from kernels.attention.kv_view import KVView
from kernels.attention.reference import attend


def cudnn_attention(queries: Tensor, kv: KVView, layer: int) -> Tensor:
    """cuDNN's attention for one row, PyTorch's FlashAttention for several; on CUDA, in bf16 or fp16.

    For sequences of lengths in device memory cuDNN launches about seven small kernels beside its own.
    """
    keys, values = _planes(kv, layer)
    batch, tokens = queries.shape[:2]
    lengths = _query_bounds(queries)
    if batch == 1:
        output, *_ = torch.ops.aten._cudnn_attention_forward(
            queries[0], keys, values, None, lengths, kv.bounds.view(2), tokens, kv.max_tokens, False
        )
        return output.unsqueeze(0)
    output, *_ = torch.ops.aten._flash_attention_forward(
        queries.flatten(0, 1), keys, values, lengths, kv.bounds.view(-1)[: batch + 1], tokens, kv.max_tokens,
        0.0, False, False, seqused_k=kv.bounds[1] - kv.bounds[0],
    )  # fmt: skip
    return output.view_as(queries)


def flash_attn_attention(queries: Tensor, kv: KVView, layer: int) -> Tensor:
    """The package flash-attn 2, row by row; on CUDA, in bf16 or fp16. ImportError where it is not installed."""
    from flash_attn import flash_attn_varlen_func  # An optional package, which is built for one GPU and torch.

    keys, values = _planes(kv, layer)
    lengths, tokens = _query_bounds(queries[:1]), queries.shape[1]
    rows = zip(queries, kv.bounds.T.contiguous(), strict=True)
    return torch.stack([
        flash_attn_varlen_func(q, keys, values, lengths, bounds, tokens, kv.max_tokens) for q, bounds in rows
    ])  # fmt: skip


def cpu_attention(queries: Tensor, kv: KVView, layer: int) -> Tensor:
    """PyTorch's own attention on a CPU, row by row."""
    _planes(kv, layer)
    return torch.stack([attend(q, *kv.attended(row, layer)[:2]) for row, q in enumerate(queries)])


def library_attention(device: torch.device) -> AttentionBackend:
    """What PyTorch brings for `device`."""
    return cudnn_attention if device.type == "cuda" else cpu_attention


def _planes(kv: KVView, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values [tokens of the pool, heads, D]."""
    keys, values = kv.planes.keys, kv.planes.values
    if torch.int8 in (keys.dtype, values.dtype) or kv.last_log is not None:
        raise ValueError(
            f"a library attends neither keys in {keys.dtype} and values in {values.dtype} nor one key for several"
        )
    kv.planes.require_layer("library_attention", layer)
    return keys[layer], values[layer]


def _query_bounds(queries: Tensor) -> Tensor:
    """int32 [B + 1], where each row's queries begin, and where the last one's end."""
    batch, tokens = queries.shape[:2]
    return torch.arange(0, (batch + 1) * tokens, tokens, dtype=torch.int32, device=queries.device)
