"""What the layers of the transformer leave to others: attention over what is kept, and the ops around it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from engines.wan.layers import Attention
from engines.wan.quantized_linear import Projection, project


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


class Residual(NamedTuple):
    """The residual [B, frames, tokens of a frame, dim] and the branch that is still to be added to it.

    Whoever norms the sum adds: both are one kernel, across layers too. `branch` has the shape of `x`, and goes
    through `gate` [B, frames, 1, dim] if there is one.
    """

    x: Tensor
    branch: Tensor | None = None
    gate: Tensor | None = None


class AdaLN(NamedTuple):
    """LayerNorm without weights, x factor + shift; these are [B, frames, 1, dim], or expanded to it."""

    shift: Tensor
    factor: Tensor
    eps: float


class QKV(NamedTuple):
    """Projections of an attention, [B, T, dim] each, which may be views of one product."""

    q: Tensor
    k: Tensor
    v: Tensor


class KV(NamedTuple):
    """The keys and values among them."""

    k: Tensor
    v: Tensor


class LayerOps(Protocol):
    """What a layer computes besides attention, over B rows of T tokens.

    `name` is that of the module whose weights an op takes, as in a state dict ("blocks.7.self_attn"). An
    implementation may take others in their place, such as 8-bit ones.
    """

    def modulated_qkv(
        self, name: str, attention: Attention, residual: Residual, norm: AdaLN
    ) -> tuple[Tensor, QKV]:
        """The sum, and the projections of that normed."""

    def modulated_kv(self, name: str, attention: Attention, residual: Residual, norm: AdaLN) -> KV:
        """Keys and values only, of a layer that ends with them."""

    def attention_out(
        self, name: str, attention: Attention, x: Tensor, attended: Tensor, gate: Tensor
    ) -> Residual:
        """The residual `x`, and the projection of what was attended [B, T, heads, channels] as its branch."""

    def cross_query(
        self, name: str, attention: Attention, residual: Residual, norm: nn.LayerNorm
    ) -> tuple[Tensor, Tensor]:
        """The sum, and the query projection [B, T, dim] of that normed."""

    def cross_out(self, name: str, attention: Attention, x: Tensor, attended: Tensor) -> Residual:
        """As `attention_out`, for an attention without gate."""

    def mlp(self, name: str, ffn: nn.Sequential, residual: Residual, norm: AdaLN, gate: Tensor) -> Residual:
        """The sum, and the feed-forward net of that normed as its branch; `ffn` is linear, tanh GELU, linear."""

    def head(self, name: str, linear: nn.Linear, residual: Residual, norm: AdaLN) -> Tensor:
        """The last projection, of the sum normed: [B, frames, tokens of a frame, outputs]."""


class EagerOps(LayerOps):
    """The same in PyTorch's own operators, on any device and differentiable: these define the results."""

    @override
    def modulated_qkv(
        self, name: str, attention: Attention, residual: Residual, norm: AdaLN
    ) -> tuple[Tensor, QKV]:
        x, normed = self._modulated(residual, norm)
        return x, QKV(*project(normed.flatten(1, 2), (attention.q, attention.k, attention.v)))

    @override
    def modulated_kv(self, name: str, attention: Attention, residual: Residual, norm: AdaLN) -> KV:
        rows = self._modulated(residual, norm)[1].flatten(1, 2)
        return KV(*project(rows, (attention.k, attention.v)))

    @override
    def attention_out(
        self, name: str, attention: Attention, x: Tensor, attended: Tensor, gate: Tensor
    ) -> Residual:
        return Residual(x, self._linear(attended.flatten(-2), attention.o).view_as(x), gate)

    @override
    def cross_query(
        self, name: str, attention: Attention, residual: Residual, norm: nn.LayerNorm
    ) -> tuple[Tensor, Tensor]:
        x, normed = self._normed(residual, norm)
        return x, self._linear(normed.flatten(1, 2), attention.q)

    @override
    def cross_out(self, name: str, attention: Attention, x: Tensor, attended: Tensor) -> Residual:
        return Residual(x, self._linear(attended.flatten(-2), attention.o).view_as(x))

    @override
    def mlp(self, name: str, ffn: nn.Sequential, residual: Residual, norm: AdaLN, gate: Tensor) -> Residual:
        x, normed = self._modulated(residual, norm)
        return Residual(x, ffn(normed), gate)

    @override
    def head(self, name: str, linear: nn.Linear, residual: Residual, norm: AdaLN) -> Tensor:
        return self._linear(self._modulated(residual, norm)[1], linear)

    def _modulated(self, residual: Residual, norm: AdaLN) -> tuple[Tensor, Tensor]:
        """The sum, and that normed."""
        x = _sum(residual)
        return x, F.layer_norm(x, x.shape[-1:], eps=norm.eps) * norm.factor + norm.shift

    def _normed(self, residual: Residual, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """The same with weights."""
        x = _sum(residual)
        return x, norm(x)

    def _linear(self, x: Tensor, layer: Projection) -> Tensor:
        made: Tensor = layer(x)
        return made


def _sum(residual: Residual) -> Tensor:
    x, branch, gate = residual
    if branch is None:
        return x
    return x + (branch if gate is None else branch * gate)


EAGER_OPS = EagerOps()
