"""The parts of a transformer block that know nothing of streams."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from engines.config.networks import TransformerConfig
from engines.wan.quantized_linear import Projection
from kernels.token_rows import rms_norm_reference

MODULATIONS = 6
"""Shift, factor and gate of self attention, then of the feed-forward net."""


class PackedLinear(NamedTuple):
    """Linear layers of the same inputs as one: weight [all their outputs, inputs], bias [all their outputs]."""

    weight: Tensor
    bias: Tensor


def pack(layers: Sequence[nn.Linear]) -> PackedLinear:
    """Put the parameters of `layers` side by side in memory, and return them as one layer's.

    Theirs become views of it, so nothing is stored twice, and what is loaded into them in place is in both. Layers
    that already lie side by side stay where they are.
    """
    return PackedLinear(
        side_by_side([layer.weight for layer in layers]), side_by_side([layer.bias for layer in layers])
    )


@torch.no_grad()
def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """[sum of rows, ...] of parameters or buffers [rows, ...], which become views of it."""
    rows = [len(part) for part in parts]
    if all(_follows(part, before) for before, part in pairwise(parts)):
        return parts[0].detach().as_strided((sum(rows), *parts[0].shape[1:]), parts[0].stride())
    packed = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, packed.split(rows), strict=True):
        part.data = view
    return packed


def _follows(part: Tensor, before: Tensor) -> bool:
    """Whether `part` begins where `before` ends, in one piece of memory."""
    one_piece = part.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
    return one_piece and part.data_ptr() == before.data_ptr() + before.nbytes


class RMSNorm(nn.Module):
    """Root-mean-square norm over all channels, computed in fp32, weighted in the input's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to the same."""
        return rms_norm_reference(x, self.weight, self.eps)


class Attention(nn.Module):
    """The projections of an attention: queries and keys are normalized over all heads together."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q: Projection = nn.Linear(config.dim, config.dim)
        self.k: Projection = nn.Linear(config.dim, config.dim)
        self.v: Projection = nn.Linear(config.dim, config.dim)
        self.o: Projection = nn.Linear(config.dim, config.dim)
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
