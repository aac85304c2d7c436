"""How a batch's attention is called, whoever computes it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from kernels.attention.kv_view import KVViewTable


class AttentionBackend(Protocol):
    """How a batch's attention is called, whoever computes it."""

    def __call__(
        self, queries: Tensor, table: KVViewTable, layer: int, *, sink_queries: Tensor | None = None
    ) -> Tensor:
        """See `kernels.attention.window.window_attention`."""
