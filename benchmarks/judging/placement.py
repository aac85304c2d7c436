"""How far a clip's subject is from its place: where its own outline is filled best with its own color."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import Clip, Color

PAINTED = 0.35
"""Of the greatest difference between two colors of a subject: from here on a pixel is part of it."""

MARGIN_PX = 4
"""Round an outline, in which the subject's color must not be."""

REACH = 0.3
"""Distance from the subject's color, in RGB of 0..1, from which a pixel counts as having nothing of it."""


class Outline(NamedTuple):
    """A clip's subject: the pixels that it paints [B, F, 1, H, W], 0 or 1, and their mean color [B, F, 3]."""

    cover: Tensor
    color: Tensor


def outline(world: Renderer, clips: Sequence[Clip], first_frame: int, frames: int) -> Outline:
    """Of the clips as they are rendered, from their scenes' poses: what changes when only the color does."""
    red, blue = (
        world.render([_painted(clip, color) for clip in clips], [first_frame] * len(clips), frames)
        for color in (Color.RED, Color.BLUE)
    )
    change = (red - blue).abs().mean(dim=2, keepdim=True)
    cover = (change > PAINTED * change.amax(dim=(-2, -1), keepdim=True)).float()
    true = world.render(clips, [first_frame] * len(clips), frames)
    return Outline(cover, (true * cover).sum(dim=(-2, -1)) / cover.sum(dim=(-2, -1)))


def displacement(pictures: Tensor, subject: Outline) -> Tensor:
    """How far the subject in `pictures` [B, F, 3, H, W] is from its outline: [B, F], as a share of the width."""
    return shift(pictures, subject).norm(dim=-1) / pictures.shape[-1]


def shift(pictures: Tensor, subject: Outline) -> Tensor:
    """Where the subject in `pictures` [B, F, 3, H, W] is from its outline: [B, F, 2] fp64 pixels down and across.

    At most half the picture's size is looked for, either way.
    """
    height, width = pictures.shape[-2:]
    like = (REACH - (pictures - subject.color[..., None, None]).norm(dim=2)).clamp(min=0)
    size = (2 * height, 2 * width)
    found = torch.fft.rfft2(like, size) * torch.fft.rfft2(_template(subject.cover), size).conj()
    # Of the shifts, those upwards and to the left are at the end.
    scores = torch.fft.irfft2(found, size).roll((height // 2, width // 2), (-2, -1))[..., :height, :width]
    best = scores.flatten(-2).argmax(dim=-1)
    return torch.stack([best // width - height // 2, best % width - width // 2], dim=-1).double()


def _template(cover: Tensor) -> Tensor:
    """[B, F, H, W]: positive in the outline, negative round it, in all nought."""
    shape = cover.shape[:2]
    wide = F.max_pool2d(cover.flatten(0, 1), 2 * MARGIN_PX + 1, stride=1, padding=MARGIN_PX).unflatten(0, shape)
    inside, ring = cover.squeeze(2), (wide - cover).squeeze(2)
    return inside / inside.sum((-2, -1), keepdim=True) - ring / ring.sum((-2, -1), keepdim=True)


def _painted(clip: Clip, color: Color) -> Clip:
    return replace(clip, scene=replace(clip.scene, color=color))
