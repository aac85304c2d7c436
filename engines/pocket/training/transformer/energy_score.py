"""How good samples are: the energy score, least for a network that draws them from what the world has.

The squared error is least for the mean of all that may follow, in which rain and snow are fog. The distance of a
sample from the truth, less half of its distance from another sample, is least where samples are spread as the
truth is (Gneiting and Raftery 2007, section 4.3; as a loss of denoisers, De Bortoli et al. 2025).
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

FINE, COARSE = 2, 4
"""Sides of the patches whose distances are taken, of each frame and of all frames together."""

SMALLEST = 1e-6
"""Of a squared distance, whose root has no slope at nought."""


class Score(NamedTuple):
    """The score, of which less is better; error and spread are alike where samples are as varied as the truth."""

    total: Tensor
    error: Tensor
    spread: Tensor


class EnergyScore:
    """Of latents [B, frames, channels, h, w], whose channels are weighed: one on average."""

    def __init__(self, energy: Tensor, channel_power: float) -> None:
        weights = energy**channel_power
        self._weights = (weights / weights.mean())[:, None, None]

    def __call__(self, one: Tensor, other: Tensor, truth: Tensor) -> Score:
        """Of two samples that were drawn alike, beside the truth that one could have been."""
        error = (self._distance(one, truth) + self._distance(other, truth)) / 2
        spread = self._distance(one, other)
        return Score(error - spread / 2, error.detach(), spread.detach())

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Euclidean distances over patches, averaged: small ones of each frame, and larger ones of them all."""
        squares = ((one - other).square() * self._weights).mean(dim=2)
        fine = F.avg_pool2d(squares, FINE)
        coarse = F.avg_pool2d(squares.mean(dim=1, keepdim=True), COARSE)
        return (_root(fine) + _root(coarse)) / 2


def _root(squares: Tensor) -> Tensor:
    return squares.clamp(min=SMALLEST).sqrt().mean()
