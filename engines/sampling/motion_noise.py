"""How much noise a block's input is mixed with: the more moves in the pictures, the less (StreamDiffusionV2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from engines.config.validation import require

FULL_MOTION = 0.2
"""Root mean square of a picture's change, in pixels of -1..1, that counts as one."""

MOST_LESS = 0.1
"""By how much full motion lowers the scale of the noise."""

KEPT = 0.1
"""The share of the scale before that stays in the next one."""


@dataclass(frozen=True)
class NoiseSetting:
    """The share of noise for pictures at rest, and whether it is less where they move."""

    scale: float
    follows_motion: bool = True

    def __post_init__(self) -> None:
        require(0 < self.scale <= 1, f"noise_scale {self.scale} is outside 0..1")


@dataclass(frozen=True, eq=False)
class MotionNoise:
    """The scale of the noise after some pictures: a value, which each call replaces.

    Args:
        scale: the one in force.
        last: the last picture, [1, 3, H, W] in -1..1.
        before: the scale before the last pictures; None where they were the first.
        moved: how much moved in them, which a setting may ask for that comes later.

    """

    scale: float
    last: Tensor
    before: float | None = None
    moved: float = 0.0

    @classmethod
    def start(cls, setting: NoiseSetting, pictures: Tensor) -> Self:
        """After a stream's first pictures, [N, 3, H, W] in -1..1, which are mixed as those at rest."""
        return cls(setting.scale, pictures[-1:].clone())

    def after(self, setting: NoiseSetting, pictures: Tensor) -> MotionNoise:
        """After the next ones; on CUDA this waits for how much moved in them."""
        moved = motion(pictures, self.last).item()
        return MotionNoise(_scale(setting, self.scale, moved), pictures[-1:].clone(), self.scale, moved)

    def under(self, setting: NoiseSetting) -> MotionNoise:
        """As if the last pictures had come under another setting."""
        return replace(self, scale=_scale(setting, self.before, self.moved))


def _scale(setting: NoiseSetting, before: float | None, moved: float) -> float:
    if before is None or not setting.follows_motion:
        return setting.scale
    return (setting.scale - MOST_LESS * moved) * (1 - KEPT) + before * KEPT


def motion(pictures: Tensor, before: Tensor) -> Tensor:
    """How much changes at most from one to the next of `pictures`, and from the one `before`: a number in 0..1."""
    # Channels first, as published: the order of a sum decides its last bits, and those the timestep now and then.
    shown = torch.cat([before, pictures]).transpose(0, 1).contiguous()
    changes = shown[:, 1:] - shown[:, :-1]
    return (changes.pow(2).mean(dim=(0, 2, 3)).sqrt().max() / FULL_MOTION).clamp(0.0, 1.0)


def first_timestep(scale: float, below: int) -> int:
    """At which a block's first step runs whose input is mixed at `scale`, told as cleaner by `below` timesteps."""
    return max(int(1000 * scale) - below, 0)


def mix(latents: Tensor, noise: Tensor, scale: float) -> Tensor:
    """The input of a block's first step: each product, and their sum, rounded to the latents' dtype."""
    return noise * scale + latents * (1 - scale)
