"""The causal Wan2.1 transformer: maths only. What it attends is lent to it by a `Memory`.

Wan2.1 (Wan Team 2025) made causal as in CausVid and LongLive (Yang et al. 2025): each block of latent frames
attends itself in both directions and the past through stored keys and values. Parameter names are those of the
published checkpoints.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.config.geometry import PATCH
from engines.config.networks import TransformerConfig

MODULATIONS = 6
"""Shift, scale and gate of self attention, then of the feed-forward net."""


class Memory(Protocol):
    """What a pass reads and leaves behind. B streams, T tokens each.

    It is handed projections as a layer's linear maps give them, [B, T, dim], together with the `Attention` that
    made them, which can norm them and part them into heads: so a memory may do all of that in one kernel.
    """

    def attend(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep the pass's own keys and values, and attend the window with them in it: [B, T, heads, channels]."""

    def remember(self, layer: int, attention: Attention, k: Tensor, v: Tensor) -> None:
        """Keep the pass's own keys and values."""

    def attend_prompt(self, layer: int, attention: Attention, q: Tensor) -> Tensor:
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


class PlainOps:
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


PLAIN_OPS = PlainOps()


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
    """The projections of an attention: queries and keys are normalised over all heads together."""

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


class Modulations(NamedTuple):
    """What timesteps do to a pass: a function of them and of the weights, and of nothing else.

    timesteps: [B, frames] fp32, 1000 for pure noise, 0 for clean.
    layers: [layers, B, frames, 6, dim].
    head: [B, frames, 2, dim].
    """

    timesteps: Tensor
    layers: Tensor
    head: Tensor


class TransformerBlock(nn.Module):
    """Self attention over the window, attention to the prompt, feed-forward net."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, MODULATIONS, config.dim) / config.dim**0.5)
        self.self_attn = Attention(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = Attention(config)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )

    def forward(self, x: Tensor, modulation: Tensor, memory: Memory, ops: LayerOps) -> Tensor:
        """One layer of a pass.

        Args:
            x: [B, frames, tokens of a frame, dim].
            modulation: [B, frames, 6, dim], this layer's.
            memory: where keys and values go and come from.
            ops: compute all but attention.

        """
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.unsqueeze(2).unbind(3)
        own, cross = self.self_attn, self.cross_attn
        normed = ops.modulate(x, shift, scale, self.eps).flatten(1, 2)
        q, k, v = (ops.project(layer, normed) for layer in (own.q, own.k, own.v))
        x = ops.project_onto(x, own.o, memory.attend(self.layer, own, q, k, v).flatten(-2), gate)
        q = ops.project(cross.q, self.norm3(x).flatten(1, 2))
        x = ops.project_onto(x, cross.o, memory.attend_prompt(self.layer, cross, q).flatten(-2), None)
        hidden = ops.project_gelu(self._ffn(0), ops.modulate(x, ffn_shift, ffn_scale, self.eps))
        return ops.project_onto(x, self._ffn(2), hidden, ffn_gate)

    def remember(self, x: Tensor, modulation: Tensor, memory: Memory, ops: LayerOps) -> None:
        """Write this layer's keys and values and stop there."""
        shift, scale, *_ = modulation.unsqueeze(2).unbind(3)
        normed = ops.modulate(x, shift, scale, self.eps).flatten(1, 2)
        k, v = ops.project(self.self_attn.k, normed), ops.project(self.self_attn.v, normed)
        memory.remember(self.layer, self.self_attn, k, v)

    def _ffn(self, index: int) -> nn.Linear:
        return cast(nn.Linear, self.ffn[index])


class Head(nn.Module):
    """The last, modulated projection from tokens to patches of flow."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.head = nn.Linear(config.dim, PATCH * PATCH * config.latent_channels)

    def forward(self, x: Tensor, modulation: Tensor, ops: LayerOps) -> Tensor:
        """[B, frames, tokens, dim], modulation [B, frames, 2, dim]; to [B, frames, tokens, patch]."""
        shift, scale = modulation.unsqueeze(2).unbind(3)
        return ops.project(self.head, ops.modulate(x, shift, scale, self.eps))


class CausalTransformer(nn.Module):
    """Predicts the flow of a block, given the window that its memory holds."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.latent_channels, dim, (1, PATCH, PATCH), (1, PATCH, PATCH))
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, MODULATIONS * dim))
        self.blocks = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.layers))
        self.head = Head(config)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.head.head.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.head.weight.device

    def forward(self, latents: Tensor, timesteps: Tensor, memory: Memory) -> Tensor:
        """`denoise` at timesteps [B, frames] fp32, 1000 for pure noise, 0 for clean."""
        return self.denoise(latents, self.modulations(timesteps), memory)

    def modulations(self, timesteps: Tensor) -> Modulations:
        """What timesteps [B, frames] fp32 do to a pass."""
        time = self._embed_time(timesteps)
        projected = self.time_projection(time).unflatten(-1, (MODULATIONS, -1))
        layers = torch.stack([block.modulation.unsqueeze(1) + projected for block in self._layers])
        return Modulations(timesteps, layers, self.head.modulation.unsqueeze(1) + time.unsqueeze(2))

    def denoise(
        self, latents: Tensor, modulations: Modulations, memory: Memory, ops: LayerOps = PLAIN_OPS
    ) -> Tensor:
        """A denoising step: the flow of `latents`.

        Args:
            latents: [B, frames, channels, height, width], in the weights' dtype.
            modulations: those of the latents' timesteps.
            memory: receives the keys and values of these frames before they are attended.
            ops: compute what is not attention.

        Returns:
            Flow of the shape of `latents`.

        """
        x = self._run(self._patch(latents), modulations, memory, ops, len(self.blocks))
        return self._unpatch(self.head(x, modulations.head, ops), latents.shape[-2] // PATCH)

    def remember(
        self, latents: Tensor, modulations: Modulations, memory: Memory, ops: LayerOps = PLAIN_OPS
    ) -> None:
        """A pass made only for its keys and values: stops where the last layer has written its own."""
        x = self._run(self._patch(latents), modulations, memory, ops, len(self.blocks) - 1)
        self._layers[-1].remember(x, modulations.layers[-1], memory, ops)

    def read_prompt(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a prompt in every layer's attention to it.

        Args:
            rows: [N, text_dim] embedding of its tokens, and one row of zeros if there is padding.

        Returns:
            Keys and values, each [layers, N, heads, channels].

        """
        text = self.text_embedding(rows.to(self.device, self.dtype))
        attentions = [block.cross_attn for block in self._layers]
        keys = torch.stack([attention.keys(attention.k(text)) for attention in attentions])
        return keys, torch.stack([attention.heads_of(attention.v(text)) for attention in attentions])

    @property
    def _layers(self) -> list[TransformerBlock]:
        return cast(list[TransformerBlock], list(self.blocks))

    def _run(self, x: Tensor, modulations: Modulations, memory: Memory, ops: LayerOps, layers: int) -> Tensor:
        for block, modulation in zip(self._layers[:layers], modulations.layers, strict=False):
            x = block(x, modulation, memory, ops)
        return x

    def _patch(self, latents: Tensor) -> Tensor:
        """[B, frames, channels, height, width] to [B, frames, tokens, dim]."""
        batch, frames = latents.shape[:2]
        rows = latents.unfold(3, PATCH, PATCH).unfold(4, PATCH, PATCH)
        patches = rows.permute(0, 1, 3, 4, 2, 5, 6).reshape(
            batch, frames, -1, self.patch_embedding.weight[0].numel()
        )
        return F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def _unpatch(self, patches: Tensor, rows: int) -> Tensor:
        """[B, frames, tokens, (patch row, patch column, channel)] to [B, frames, channels, height, width]."""
        grid = patches.unflatten(3, (PATCH, PATCH, -1)).unflatten(2, (rows, -1))
        return grid.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _embed_time(self, timesteps: Tensor) -> Tensor:
        """[B, frames] to [B, frames, dim]."""
        half = self.config.freq_dim // 2
        frequency = 10000 ** -(torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
        angle = timesteps.double().unsqueeze(-1) * frequency
        return self.time_embedding(torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.dtype))
