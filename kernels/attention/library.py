"""Attention of blocks over their slabs by a library, one stream after the other: `window_attention` elsewhere.

A library reads one run of keys and knows one rotation of the queries. Where the sink is scored by another rotation
there are two calls, merged by the logarithms of their sums. Addresses and lengths come from the host: a captured
graph serves only the slabs that it was captured with, at that fill.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.attention.backend import AttentionBackend
from kernels.attention.kv_view import KVView, KVViewTable

Library = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From queries [1, T, H, D], keys and values [1, S, H, D] to output [1, T, H, D] and fp32 log-sums [1, H, T]."""

Merge = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""`kernels.attention.merge.merge`, or its reference."""


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """cuDNN's attention, on CUDA in bf16 or fp16. PyTorch's public function gives no log-sums."""
    attention = torch.ops.aten._scaled_dot_product_cudnn_attention
    output, log_sums, *_ = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None, True)
    return output.transpose(1, 2), log_sums.view(1, q.shape[2], q.shape[1])


def torch_cpu(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's own attention on a CPU, in fp32 or bf16."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, log_sums = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return output.transpose(1, 2), log_sums


def flash_attn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The package flash-attn 2, on CUDA in bf16 or fp16; ImportError where it is not installed."""
    from flash_attn import flash_attn_func  # An optional package, which is built for one GPU and torch.

    output, log_sums, _ = flash_attn_func(q, k, v, return_attn_probs=True)
    return output, log_sums


def library_attention(library: Library, merge: Merge) -> AttentionBackend:
    """Attention over a `KVViewTable` by `library`; it takes no INT8 keys and no multiplicities."""

    def attend(queries: Tensor, table: KVViewTable, layer: int, *, sink_queries: Tensor | None = None) -> Tensor:
        sinks = queries if sink_queries is None else sink_queries
        rows = zip(queries.split(1), sinks.split(1), table.lent, strict=True)
        streams = [_attend(library, merge, q, sink_q, lent, layer) for q, sink_q, lent in rows]
        return streams[0] if len(streams) == 1 else torch.cat(streams)

    return attend


def _attend(library: Library, merge: Merge, q: Tensor, sink_q: Tensor, lent: KVView, layer: int) -> Tensor:
    """[1, T, H, D] of one stream."""
    keys, values, scales = lent.attended(layer)
    if scales is not None or lent.last_log != 0:
        raise ValueError(
            f"a library attends no keys of {keys.dtype}, nor one that stands for exp({lent.last_log})"
        )
    k, v = keys.unsqueeze(0), values.unsqueeze(0)
    sink = 0 if sink_q is q else lent.sink
    if sink == 0:
        return library(q, k, v)[0]
    if sink == lent.filled:
        return library(sink_q, k, v)[0]
    sink_part, sink_sums = library(sink_q, k[:, :sink], v[:, :sink])
    ring_part, ring_sums = library(q, k[:, sink:], v[:, sink:])
    ring_part, sink_part = ring_part[0].contiguous(), sink_part[0].contiguous()
    return merge(ring_part, sink_part, ring_sums[0].contiguous(), sink_sums[0].contiguous()).unsqueeze(0)
