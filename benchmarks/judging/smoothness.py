"""How pictures move and how sharp they are, beside the same clip as it should be.

An autoencoder codes groups of four pictures: the change into a picture is told by its place, or phase, in the
group, because what goes wrong does so at some phases alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engines.config.geometry import TEMPORAL_FACTOR

COPY = 0.05
"""A picture that changed by less than this share of what it should have is a copy of the one before."""

STILL = 1e-4
"""A change below this, of full scale, is none: there is nothing to copy."""


class Beside(NamedTuple):
    """Of some clips and the same ones as they should be, by phase where it has four values.

    `change` and `change_wanted` are mean absolute differences from picture to picture, `edges` and `edges_wanted`
    those from pixel to pixel, `copies` how many pictures are copies of the one before, of `pictures` that should
    differ; `error` is the mean squared difference of the two.
    """

    change: Tensor
    change_wanted: Tensor
    copies: Tensor
    pictures: Tensor
    edges: Tensor
    edges_wanted: Tensor
    error: Tensor


def beside(seen: Tensor, wanted: Tensor) -> Beside:
    """Of clips [B, 1 + 4k, 3, H, W] in 0..1, one value per clip: [B, 4] by phase, [B] without."""
    made, real = _changes(seen), _changes(wanted)
    moving = real > STILL
    return Beside(
        made.mean(1), real.mean(1),
        (moving & (made < COPY * real)).sum(1).float(), moving.sum(1).float(),
        _edges(seen), _edges(wanted), (seen - wanted).square().mean(dim=(1, 2, 3, 4)),
    )  # fmt: skip


def _changes(clips: Tensor) -> Tensor:
    """[B, k, 4]: into each picture but the first, group by group."""
    return clips.diff(dim=1).abs().mean(dim=(2, 3, 4)).unflatten(1, (-1, TEMPORAL_FACTOR))


def _edges(clips: Tensor) -> Tensor:
    across, along = clips.diff(dim=-1).abs(), clips.diff(dim=-2).abs()
    return across.mean(dim=(1, 2, 3, 4)) + along.mean(dim=(1, 2, 3, 4))


def summary(clips: Beside) -> dict[str, object]:
    """Ratios of sums over all clips, and PSNR of the mean error in dB."""
    psnr_db = round(float(-10 * torch.log10(clips.error.mean())), 2)
    return {"clips": len(clips.error), "psnr_db": psnr_db, **smoothness(clips)}


def smoothness(clips: Beside) -> dict[str, object]:
    """Ratios of sums over all clips: what can be said of pictures that are to be alike, and not the same."""
    return {
        "edges_by_wanted": round(float(clips.edges.sum() / clips.edges_wanted.sum()), 3),
        "change_by_wanted": _rounded(clips.change.sum(0) / clips.change_wanted.sum(0)),
        "copies": _rounded(clips.copies.sum(0) / clips.pictures.sum(0).clamp(min=1)),
    }


def joined(clips: Sequence[Beside]) -> Beside:
    """All of them as one."""
    return Beside(*(torch.cat(values) for values in zip(*clips, strict=True)))


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]
