"""How a batch's attention is called, whoever computes it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from kernels.attention.kv_view import KVView


class AttentionBackend(Protocol):
    """Attention of rows over a window or a prompt."""

    def __call__(self, queries: Tensor, kv: KVView, layer: int) -> Tensor:
        """[B, T, heads, D] of rotated queries of that shape; see `kernels.attention.window.window_attention`."""
