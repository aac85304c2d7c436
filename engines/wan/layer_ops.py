"""What the layers of the transformer leave to others: attention over what is kept, and the ops around it."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from engines.wan.layers import Attention


class AttentionContext(Protocol):
    """What a pass reads and leaves behind. B streams, T tokens each.

    It is handed projections as a layer's linear maps give them, [B, T, dim], together with the `Attention` that
    made them, which can norm them and part them into heads: so a context may do all of that in one kernel.
    """

    def self_attention(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep the pass's own keys and values, and attend the window with them in it: [B, T, heads, channels]."""

    def write_kv(self, layer: int, attention: Attention, k: Tensor, v: Tensor) -> None:
        """Keep the pass's own keys and values."""

    def cross_attention(self, layer: int, attention: Attention, q: Tensor) -> Tensor:
        """Attend the stream's prompt: [B, T, heads, channels]."""


class LayerOps(Protocol):
    """What a layer computes besides attention. Rows are [B, frames, tokens of a frame, dim]."""

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        """LayerNorm of the rows, x (1 + scale) + shift; these are [B, frames, 1, dim]."""

    def project(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """`layer` of [..., inputs]."""

    def project_gelu(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """GELU of `layer` of [..., inputs], in its tanh form."""

    def project_onto(self, x: Tensor, layer: nn.Linear, y: Tensor, gate: Tensor | None) -> Tensor:
        """The rows `x` with `layer` of y [..., inputs] added, x `gate` [B, frames, 1, dim] if there is one."""


class EagerOps:
    """The same in PyTorch's own operators: on any device, and differentiable."""

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        """Three roundings."""
        return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift

    def project(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """As it is."""
        return layer(x)

    def project_gelu(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """Two operators."""
        return F.gelu(layer(x), approximate="tanh")

    def project_onto(self, x: Tensor, layer: nn.Linear, y: Tensor, gate: Tensor | None) -> Tensor:
        """Two or three operators."""
        projected = layer(y).view_as(x)
        return x + (projected if gate is None else projected * gate)


EAGER_OPS = EagerOps()
