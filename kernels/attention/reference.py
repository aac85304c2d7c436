"""Attention of a block's queries over the filled slots of a KV slab, and over a prompt.

    output = softmax(q k^T / sqrt(D) + log multiplicity) v

Key order does not matter to a softmax, so the slots are read as they lie. Under relative RoPE the sink's keys
carry window positions and all others carry stream positions: each query comes in both rotations, and the scores
of the sink's keys use the one, the scores of all others the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Flash = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

SCORES_AT_ONCE = 1 << 26
"""Scores that the reference holds at a time where it cannot leave them to the library: 256 MiB in fp32."""


def slab_attention(
    queries: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    sink_queries: Tensor | None = None,
    sink_tokens: Sequence[int] = (),
) -> Tensor:
    """Attend each stream's queries over its own slab.

    Args:
        queries: [B, T, heads, D], rotated to stream positions.
        keys: for each stream its filled slots, [S, heads, D]; S may differ between streams.
        values: likewise.
        sink_queries: the queries rotated to window positions, if any stream's differ.
        sink_tokens: with `sink_queries`, for each stream the keys at the front of its slab that those score.

    Returns:
        [B, T, heads, D] in the dtype of `queries`.

    """
    _check(queries, keys, values, sink_queries, sink_tokens)
    if sink_queries is None:
        return torch.stack([_attend(q, k, v) for q, k, v in zip(queries, keys, values, strict=True)])
    rows = zip(queries, sink_queries, keys, values, sink_tokens, strict=True)
    return torch.stack([_attend_two(*row) if row[-1] else _attend(row[0], *row[2:4]) for row in rows])


def prompt_attention(queries: Tensor, keys: Tensor, values: Tensor, log_multiplicity: Tensor | None) -> Tensor:
    """Attend one stream's queries [T, heads, D] over a prompt's keys and values [N, heads, D].

    `log_multiplicity` [N], fp32, is the logarithm of the number of equal keys that each key stands for.
    """
    return _attend(queries, keys, values, log_multiplicity)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Library attention of [T, heads, D] over [S, heads, D]."""
    if bias is not None and q.is_cuda and bias.dtype != q.dtype:
        raise ValueError(f"on CUDA libraries misread a bias in {bias.dtype} beside queries in {q.dtype}")
    mask = None if bias is None else bias.expand(1, 1, q.shape[0], -1)
    return F.scaled_dot_product_attention(_heads_first(q), _heads_first(k), _heads_first(v), mask)[0].transpose(
        0, 1
    )


def _attend_two(q: Tensor, sink_q: Tensor, k: Tensor, v: Tensor, sink_tokens: int) -> Tensor:
    """One softmax over the sink's keys, scored by `sink_q`, and all others, scored by `q`."""
    flash = FLASH.get((q.device.type, q.dtype))
    if flash is None:
        return attend_two_reference(q, sink_q, k, v, sink_tokens)
    return _merge_two(flash, q, sink_q, k, v, sink_tokens)


def attend_two_reference(
    q: Tensor, sink_q: Tensor, k: Tensor, v: Tensor, sink_tokens: int, last_log: float = 0.0
) -> Tensor:
    """Scores written out in fp32; a few query rows at a time, so that they fit.

    Args:
        q: [T, heads, D], scores the keys from `sink_tokens` on.
        sink_q: [T, heads, D], scores the keys before.
        k: [S, heads, D].
        v: [S, heads, D].
        sink_tokens: where the two meet.
        last_log: logarithm of the number of equal keys that the last one stands for.

    """
    rows_at_once = max(1, SCORES_AT_ONCE // (k.shape[0] * k.shape[1]))
    keys, values = k.float().permute(1, 2, 0), v.float().transpose(0, 1)
    sink_keys, ring_keys = keys[..., :sink_tokens], keys[..., sink_tokens:]
    scale = q.shape[-1] ** -0.5
    parts = []
    for ring_part, sink_part in zip(
        q.float().split(rows_at_once), sink_q.float().split(rows_at_once), strict=True
    ):
        scores = torch.cat([sink_part.transpose(0, 1) @ sink_keys, ring_part.transpose(0, 1) @ ring_keys], dim=-1)
        scores *= scale
        scores[..., -1] += last_log
        parts.append((scores.softmax(dim=-1) @ values).transpose(0, 1))
    return torch.cat(parts).to(q.dtype)


def _merge_two(flash: Flash, q: Tensor, sink_q: Tensor, k: Tensor, v: Tensor, sink_tokens: int) -> Tensor:
    """Two library calls, merged by the logarithms of their sums: on a CPU four times as fast as the reference."""
    sink_part, sink_sum = flash(sink_q, k[:sink_tokens], v[:sink_tokens])
    ring_part, ring_sum = flash(q, k[sink_tokens:], v[sink_tokens:])
    share = torch.sigmoid(sink_sum - ring_sum).unsqueeze(-1)
    return torch.lerp(ring_part.float(), sink_part.float(), share).to(q.dtype)[0].transpose(0, 1)


def _flash_cpu(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output [1, heads, T, D] and log-sum-exp of the scores [1, heads, T].

    The public function gives no log-sum-exp; this operator is what it calls on a CPU.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, log_sum = flash(_heads_first(q), _heads_first(k), _heads_first(v))
    return output, log_sum


def _flash_cuda(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The same on CUDA, where it also returns what only a backward pass needs."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    output, log_sum, *_ = flash(_heads_first(q), _heads_first(k), _heads_first(v))
    return output, log_sum


FLASH: dict[tuple[str, torch.dtype], Flash] = {
    ("cpu", torch.float32): _flash_cpu,
    ("cpu", torch.bfloat16): _flash_cpu,
    ("cuda", torch.bfloat16): _flash_cuda,
    ("cuda", torch.float16): _flash_cuda,
}
"""The library's attention with log-sum-exp, where there is one; elsewhere the reference runs."""


def _heads_first(x: Tensor) -> Tensor:
    """[tokens, heads, D] to [1, heads, tokens, D], a view."""
    return x.transpose(0, 1).unsqueeze(0)


def _check(
    queries: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    sink_queries: Tensor | None,
    sink_tokens: Sequence[int],
) -> None:
    batch, _, heads, dim = queries.shape
    if len(keys) != batch or len(values) != batch:
        raise ValueError(f"{batch} streams of queries but {len(keys)} of keys and {len(values)} of values")
    for k, v in zip(keys, values, strict=True):
        if k.shape != v.shape or k.shape[0] == 0 or k.shape[1:] != (heads, dim):
            raise ValueError(
                f"keys {list(k.shape)} and values {list(v.shape)} do not fit {heads} heads of {dim} channels"
            )
    if sink_queries is None:
        return
    if sink_queries.shape != queries.shape:
        raise ValueError(f"sink queries {list(sink_queries.shape)} differ from queries {list(queries.shape)}")
    if len(sink_tokens) != batch or any(n > k.shape[0] for n, k in zip(sink_tokens, keys, strict=True)):
        raise ValueError(f"sinks of {list(sink_tokens)} tokens in slabs of {[k.shape[0] for k in keys]}")
