"""Pictures to run kernels on."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.vae.frame_layout import channels_last


def pictures(*shape: int, seed: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random [B, C, T, H, W], channels-last."""
    generator = torch.Generator().manual_seed(seed)
    return channels_last(torch.randn(shape, generator=generator).to(device, dtype))


def values(count: int, *, seed: int, like: Tensor) -> Tensor:
    """One random value a channel, none of them near 0."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, generator=generator) + 0.5).to(like.device, like.dtype)


def unwritten(like: Tensor, frames: int) -> Tensor:
    """NaN for `frames` frames of the size of `like`, channels-last."""
    batch, channels, _, height, width = like.shape
    return channels_last(like.new_full((batch, channels, frames, height, width), torch.nan))
