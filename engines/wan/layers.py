"""The parts of a transformer block that know nothing of streams."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.config.networks import TransformerConfig

MODULATIONS = 6
"""Shift, scale and gate of self attention, then of the feed-forward net."""


class RMSNorm(nn.Module):
    """Root-mean-square norm over all channels, computed in fp32, weighted in the input's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to the same."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


class Attention(nn.Module):
    """The projections of an attention: queries and keys are normalized over all heads together."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def queries(self, q: Tensor) -> Tensor:
        """Projected queries [..., dim], normed, as [..., heads, channels]."""
        return self.heads_of(self.norm_q(q))

    def keys(self, k: Tensor) -> Tensor:
        """Projected keys [..., dim], normed, as [..., heads, channels]."""
        return self.heads_of(self.norm_k(k))

    def heads_of(self, x: Tensor) -> Tensor:
        """[..., dim] as [..., heads, channels]."""
        return x.unflatten(-1, (self.heads, -1))
