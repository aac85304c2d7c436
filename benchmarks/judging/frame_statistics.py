"""What can be said of a clip without knowing what it shows: its contrast, sharpness and motion, and collapse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Rec. 601."""

FLOOR = 1e-6
"""Least sharpness and motion: ratios need positive numbers, and a picture of one color has neither."""

MARGIN = 2.0
"""A clip has collapsed that is so many times beyond what rendered clips reach."""

EXTREME = 0.001
"""The share of rendered clips that lies outside what they are said to reach, on either side."""

Collapse = Literal["flat", "noise", "still"]


class Look(NamedTuple):
    """Means over a clip, on a scale of luma from 0 to 1.

    `contrast` is the standard deviation of a picture, `sharpness` the root mean square of its Laplacian,
    `motion` the mean absolute difference of one picture to the next.
    """

    contrast: float
    sharpness: float
    motion: float


def looks(pictures: Tensor) -> list[Look]:
    """One per clip of [B, T >= 2, 3, height, width] in 0..1; compare only pictures that are as far apart."""
    luma = torch.einsum("btchw,c->bthw", pictures.float(), torch.tensor(LUMA, device=pictures.device))
    contrast = luma.std(dim=(2, 3)).mean(dim=1)
    center = luma[..., 1:-1, 1:-1]
    across, along = (
        luma[..., 1:-1, :-2] + luma[..., 1:-1, 2:],
        luma[..., :-2, 1:-1] + luma[..., 2:, 1:-1],
    )
    sharpness = (across + along - 4 * center).square().mean(dim=(2, 3)).sqrt().mean(dim=1)
    motion = luma.diff(dim=1).abs().mean(dim=(1, 2, 3))
    rows = torch.stack([contrast, sharpness.clamp(min=FLOOR), motion.clamp(min=FLOOR)], dim=1)
    return [Look(*row) for row in rows.tolist()]


@dataclass(frozen=True)
class Bounds:
    """Where a clip is no picture of the world any more."""

    flat_below: float
    noise_above: float
    flicker_above: float
    still_below: float

    @classmethod
    def of(cls, rendered: Sequence[Look]) -> Self:
        """`MARGIN` beyond the extremes of rendered clips."""
        low, high = np.quantile(np.asarray(rendered), [EXTREME, 1 - EXTREME], axis=0)
        return cls(
            flat_below=float(low[0]) / MARGIN,
            noise_above=float(high[1]) * MARGIN,
            flicker_above=float(high[2]) * MARGIN,
            still_below=float(low[2]) / MARGIN,
        )

    def collapse(self, look: Look) -> Collapse | None:
        """What has become of the clip: one flat color, noise in space or time, a still picture; or None."""
        if look.contrast < self.flat_below:
            return "flat"
        if look.sharpness > self.noise_above or look.motion > self.flicker_above:
            return "noise"
        if look.motion < self.still_below:
            return "still"
        return None
