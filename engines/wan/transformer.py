"""The causal Wan2.1 transformer: maths only. What it attends is lent to it by an `AttentionContext`.

Wan2.1 (Wan Team 2025) made causal as in CausVid and LongLive (Yang et al. 2025): each block of latent frames
attends itself in both directions and the past through stored keys and values. Parameter names are those of the
published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from engines.config.geometry import PATCH
from engines.config.networks import TransformerConfig
from engines.device.fixed_dtypes import FixedDtypes
from engines.wan.layer_ops import EAGER_OPS, AdaLN, AttentionContext, LayerOps, Residual
from engines.wan.layers import MODULATIONS, Attention
from engines.wan.position_embedding import PositionEmbedding
from engines.wan.quantized_linear import quantize_layers

LAYER_FACTORS = (False, True, False, False, True, False)
HEAD_FACTORS = (False, True)
"""Which of the modulations a norm is multiplied by."""


class AdaLNModulation(NamedTuple):
    """What timesteps do to a pass: a function of them and of the weights, and of nothing else.

    A row whose frames all have one timestep may have it once: frames is 1 then. What norms are multiplied by is
    the whole factor, the published scale + 1.

    timesteps: [B, frames] fp32, 1000 for pure noise, 0 for clean.
    layers: [layers, B, frames, 6, dim], shift, factor and gate of self attention, then of the feed-forward net.
    head: [B, frames, 2, dim], shift and factor.
    """

    timesteps: Tensor
    layers: Tensor
    head: Tensor


class TransformerBlock(FixedDtypes):
    """Self attention over the window, attention to the prompt, feed-forward net.

    `modulation_factor` [6, dim] fp32 is there where the inputs of 8-bit layers are smoothed: the modulations are
    multiplied by it.
    """

    modulation_factor: Tensor | None

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, MODULATIONS, config.dim) / config.dim**0.5)
        smoothed = config.quantization is not None and config.quantization.smoothing > 0
        self.register_buffer("modulation_factor", torch.ones(MODULATIONS, config.dim) if smoothed else None)
        self.self_attn = Attention(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = Attention(config)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )

    @override
    def forward(
        self, residual: Residual, modulation: Tensor, context: AttentionContext, ops: LayerOps
    ) -> Residual:
        """One layer of a pass.

        Args:
            residual: as the layer before hands it on.
            modulation: [B, frames, 6, dim], this layer's; only the last stride is given.
            context: where keys and values go and come from.
            ops: compute all but attention.

        """
        shift, factor, gate, ffn_shift, ffn_factor, ffn_gate = modulation.unsqueeze(2).unbind(3)
        own, cross, name = self.self_attn, self.cross_attn, f"blocks.{self.layer}"
        x, qkv = ops.modulated_qkv(f"{name}.self_attn", own, residual, AdaLN(shift, factor, self.eps))
        attended = context.self_attention(self.layer, own, *qkv)
        residual = ops.attention_out(f"{name}.self_attn", own, x, attended, gate)
        x, q = ops.cross_query(f"{name}.cross_attn", cross, residual, self.norm3)
        attended = context.cross_attention(self.layer, cross, q)
        residual = ops.cross_out(f"{name}.cross_attn", cross, x, attended)
        return ops.mlp(f"{name}.ffn", self.ffn, residual, AdaLN(ffn_shift, ffn_factor, self.eps), ffn_gate)

    def modulate(self, projected: Tensor) -> Tensor:
        """This layer's modulations, of what the time embedding is projected to: both [B, frames, 6, dim]."""
        modulations = _with_factors(self.modulation.unsqueeze(1) + projected, LAYER_FACTORS)
        return modulations if self.modulation_factor is None else modulations * self.modulation_factor

    def write_kv(self, residual: Residual, modulation: Tensor, context: AttentionContext, ops: LayerOps) -> None:
        """Write this layer's keys and values and stop there."""
        shift, factor, *_ = modulation.unsqueeze(2).unbind(3)
        name, norm = f"blocks.{self.layer}.self_attn", AdaLN(shift, factor, self.eps)
        context.write_kv(self.layer, self.self_attn, *ops.modulated_kv(name, self.self_attn, residual, norm))


class Head(nn.Module):
    """The last, modulated projection from tokens to patches of flow."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.head = nn.Linear(config.dim, PATCH * PATCH * config.latent_channels)

    @override
    def forward(self, residual: Residual, modulation: Tensor, ops: LayerOps) -> Tensor:
        """Of modulation [B, frames, 2, dim]; to [B, frames, tokens of a frame, patch]."""
        shift, factor = modulation.unsqueeze(2).unbind(3)
        return ops.head("head.head", self.head, residual, AdaLN(shift, factor, self.eps))


class CausalTransformer(nn.Module):
    """Predicts the flow of a block, given the window that its context holds."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.latent_channels, dim, (1, PATCH, PATCH), (1, PATCH, PATCH))
        self.position_embedding = (
            None if config.position_grid is None else PositionEmbedding(config.position_grid, dim)
        )
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, MODULATIONS * dim))
        self.blocks = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.layers))
        self.head = Head(config)
        if config.quantization is not None:
            quantize_layers(self, config.quantization)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.head.head.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.head.weight.device

    @override
    def forward(self, latents: Tensor, timesteps: Tensor, context: AttentionContext) -> Tensor:
        """`denoise` at timesteps [B, frames] or [B, 1] fp32, 1000 for pure noise, 0 for clean."""
        return self.denoise(latents, self.modulations(timesteps), context)

    def modulations(self, timesteps: Tensor) -> AdaLNModulation:
        """What timesteps [B, frames] fp32 do to a pass."""
        dtype = torch.float32 if self.config.fp32_time else self.dtype
        time = _in(dtype, self.time_embedding)(self._time_angles(timesteps).to(dtype))
        projected = _in(dtype, self.time_projection)(time).unflatten(-1, (MODULATIONS, -1))
        layers = torch.stack([block.modulate(projected) for block in self._layers])
        head = _with_factors(self.head.modulation.unsqueeze(1) + time.unsqueeze(2), HEAD_FACTORS)
        return AdaLNModulation(timesteps, layers.to(self.dtype), head.to(self.dtype))

    def denoise(
        self, latents: Tensor, modulations: AdaLNModulation, context: AttentionContext, ops: LayerOps = EAGER_OPS
    ) -> Tensor:
        """A denoising step: the flow of `latents`.

        Args:
            latents: [B, frames, channels, height, width], in the weights' dtype.
            modulations: those of the latents' timesteps.
            context: receives the keys and values of these frames before they are attended.
            ops: compute what is not attention.

        Returns:
            Flow of the shape of `latents`.

        """
        residual = self._run(latents, modulations, context, ops, len(self.blocks))
        modulation = modulations.head.expand(-1, latents.shape[1], -1, -1)
        return self._unpatch(self.head(residual, modulation, ops), latents.shape[-2] // PATCH)

    def write_kv(
        self, latents: Tensor, modulations: AdaLNModulation, context: AttentionContext, ops: LayerOps = EAGER_OPS
    ) -> None:
        """A pass made only for its keys and values: stops where the last layer has written its own."""
        residual = self._run(latents, modulations, context, ops, len(self.blocks) - 1)
        modulation = modulations.layers[-1].expand(-1, latents.shape[1], -1, -1)
        self._layers[-1].write_kv(residual, modulation, context, ops)

    def prompt_kv(self, rows: Tensor) -> tuple[Tensor, Tensor]:
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

    def _run(
        self, latents: Tensor, modulations: AdaLNModulation, context: AttentionContext, ops: LayerOps, layers: int
    ) -> Residual:
        """Through the first `layers`, with the last one's branch not yet added."""
        residual = Residual(self._patch(latents))
        expanded = modulations.layers.expand(-1, -1, latents.shape[1], -1, -1)
        for block, modulation in zip(self._layers[:layers], expanded, strict=False):
            residual = block(residual, modulation, context, ops)
        return residual

    def _patch(self, latents: Tensor) -> Tensor:
        """[B, frames, channels, height, width] to [B, frames, tokens, dim]."""
        batch, frames = latents.shape[:2]
        rows = latents.unfold(3, PATCH, PATCH).unfold(4, PATCH, PATCH)
        patches = rows.permute(0, 1, 3, 4, 2, 5, 6).reshape(
            batch, frames, -1, self.patch_embedding.weight[0].numel()
        )
        x = F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        if self.position_embedding is not None:
            x = x + self.position_embedding(frames, *rows.shape[3:5])
        return x

    def _unpatch(self, patches: Tensor, rows: int) -> Tensor:
        """[B, frames, tokens, (patch row, patch column, channel)] to [B, frames, channels, height, width]."""
        grid = patches.unflatten(3, (PATCH, PATCH, -1)).unflatten(2, (rows, -1))
        # Of a picture one token wide, flattening alone would be a view in another order.
        return grid.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4).contiguous()

    def _time_angles(self, timesteps: Tensor) -> Tensor:
        """[B, frames] to cosines and sines, fp64 [B, frames, freq_dim]."""
        half = self.config.freq_dim // 2
        frequency = 10000 ** -(torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
        angle = timesteps.double().unsqueeze(-1) * frequency
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _with_factors(modulations: Tensor, factors: Sequence[bool]) -> Tensor:
    """[..., modulations, dim] with the whole factor of norms in the place of its scale."""
    # A tensor of them would be copied from the host, which waits for all work before.
    parts = zip(modulations.unbind(-2), factors, strict=True)
    return torch.stack([part + 1 if is_factor else part for part, is_factor in parts], dim=-2)


def _in(dtype: torch.dtype, layers: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """`layers` with their weights as they are, or widened to `dtype`."""
    state = {name: parameter.to(dtype) for name, parameter in layers.named_parameters()}
    return lambda x: torch.func.functional_call(layers, state, (x,))
