"""UMT5's encoder, as Wan2.1 uses it to turn the tokens of a prompt into embeddings.

T5 is Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer";
UMT5, which gives every layer its own table of relative positions, is Chung et al. 2023, "UniMax: Fairer and
More Effective Language Sampling for Large-Scale Multilingual Pretraining". Parameters are named as in Wan's
`models_t5_umt5-xxl-enc-bf16.pth`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from engines.config.networks import TextEncoderConfig
from engines.text.weight_only import hold_weights_in_int8
from kernels.token_rows import rms_norm_reference


def relative_buckets(length: int, config: TextEncoderConfig, device: torch.device) -> Tensor:
    """The bucket [query, key] int64 of every distance between two of `length` tokens.

    Half of the buckets are for keys after the query. In each half the first half of the buckets hold one
    distance each; the others grow logarithmically up to `max_distance`, and the last holds all beyond.
    """
    per_side = config.buckets // 2
    exact = per_side // 2
    position = torch.arange(length, device=device)
    offset = position[None, :] - position[:, None]
    distance = offset.abs()
    # The order of these fp32 operations decides on which side of an edge a distance falls: it is T5's.
    log_ratio = torch.log(distance.clamp(min=exact).float() / exact) / math.log(config.max_distance / exact)
    coarse = (exact + (log_ratio * (per_side - exact)).long()).clamp(max=per_side - 1)
    return torch.where(distance < exact, distance, coarse) + per_side * (offset > 0)


class RMSNorm(nn.Module):
    """Division by the root mean square over the last dimension, in fp32, then a learned weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` [..., dim]; rounded to the dtype of `x` before the weight is applied."""
        return rms_norm_reference(x, self.weight, self.eps)


class RelativePositions(nn.Module):
    """One layer's learned bias for every bucket and head."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.buckets, config.heads)

    @override
    def forward(self, buckets: Tensor) -> Tensor:
        """The bias [heads, query, key] of buckets [query, key]."""
        return self.embedding.weight.t()[:, buckets]


class SelfAttention(nn.Module):
    """T5's attention: no biases in the projections, no 1/sqrt(head_dim)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        inner = config.heads * config.head_dim
        self.q = nn.Linear(config.dim, inner, bias=False)
        self.k = nn.Linear(config.dim, inner, bias=False)
        self.v = nn.Linear(config.dim, inner, bias=False)
        self.o = nn.Linear(inner, config.dim, bias=False)

    @override
    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Attend within `x` [B, L, dim]; `bias` [B, heads, L, L] is added to the logits."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        # Every backend of this call computes its softmax in fp32.
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return out


class GatedFeedForward(nn.Module):
    """T5 1.1's gated feed-forward: fc2(fc1(x) * gelu(gate(x)))."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(config.dim, config.ffn_dim, bias=False), nn.GELU(approximate="tanh"))
        self.fc1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.fc2 = nn.Linear(config.ffn_dim, config.dim, bias=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Transform every row of `x` [..., dim] by itself."""
        out: Tensor = self.fc2(self.fc1(x) * self.gate(x))
        return out


class EncoderBlock(nn.Module):
    """Attention, then feed-forward; each normalized before and added to the residual."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.dim, config.eps)
        self.attn = SelfAttention(config)
        self.norm2 = RMSNorm(config.dim, config.eps)
        self.ffn = GatedFeedForward(config)
        self.pos_embedding = RelativePositions(config)

    @override
    def forward(self, x: Tensor, buckets: Tensor, padding: Tensor) -> Tensor:
        """Next `x` [B, L, dim] from buckets [L, L] and the additive `padding` mask [B, 1, 1, L]."""
        x = x + self.attn(self.norm1(x), self.pos_embedding(buckets) + padding)
        out: Tensor = x + self.ffn(self.norm2(x))
        return out


class UMT5Encoder(nn.Module):
    """UMT5's encoder for inference: no dropout."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab, config.dim)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.eps)
        if config.int8_weights:
            hold_weights_in_int8(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the weights lie, and so where ids have to be."""
        device: torch.device = self.token_embedding.weight.device
        return device

    @override
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embed tokens: ids [B, L] int64 and mask [B, L] (zero where padding) -> [B, L, dim].

        The result has the dtype of the weights. No token sees padding; rows at padding positions are
        computed all the same and mean nothing.
        """
        assert mask.shape == ids.shape, f"mask {tuple(mask.shape)} for ids {tuple(ids.shape)}"
        buckets = relative_buckets(ids.shape[1], self.config, ids.device)
        return self.encode_rows(self.token_embedding(ids), mask, buckets)

    def encode_rows(self, x: Tensor, mask: Tensor, buckets: Tensor) -> Tensor:
        """All behind the embedding: its rows [B, L, dim], their mask [B, L] and `relative_buckets` of L."""
        padding = x.new_zeros(mask.shape).masked_fill(mask == 0, torch.finfo(x.dtype).min)[:, None, None, :]
        for block in self.blocks:
            x = block(x, buckets, padding)
        out: Tensor = self.norm(x)
        return out
