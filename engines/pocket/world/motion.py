"""Where everything is at a frame: a pure function of the clip, so that a clip has no end and no state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engines.pocket.world.scene import Clip, Facing, Motion, Scene

SWITCH_FRAMES = 16
"""In which one scene turns into another."""

HOVER_PERIOD, CIRCLE_PERIOD, SWAY_PERIOD = 48, 64, 40
"""Frames of a round; the subject is then where it was."""

ONE_PLACE = 0.55
"""What chances are without any variety."""

DRIFT_SPEED = 1 / 80
"""Of the nearest layer of the world, in picture heights a frame."""


@dataclass(frozen=True)
class Chances:
    """What the clips' seeds decide, each [B] fp64 in 0..1."""

    across: Tensor
    down: Tensor
    size: Tensor
    phase: Tensor
    land: Tensor
    start: Tensor

    @classmethod
    def of(cls, clips: Sequence[Clip], device: torch.device, variety: float) -> Chances:
        """Drawn from each clip's seed; of all there could be, a share of `variety` about one place."""
        draws = np.stack([np.random.default_rng(clip.seed).random(6) for clip in clips], axis=1)
        return cls(*torch.from_numpy(ONE_PLACE + variety * (draws - ONE_PLACE)).to(device))


class Moment(NamedTuple):
    """The clips at their frames; all but `chances` are [B, F] fp64."""

    frame: Tensor
    mix: Tensor
    """How much of the scene after the switch."""
    mixed: Tensor
    """The sum of `mix` over the frames so far."""
    chances: Chances

    @classmethod
    def of(
        cls, clips: Sequence[Clip], first_frames: Sequence[int], frames: int, device: torch.device, variety: float
    ) -> Moment:
        """`frames` frames of each clip, from its own first frame on."""
        first = torch.tensor(first_frames, dtype=torch.float64, device=device)
        frame = first[:, None] + torch.arange(frames, device=device)
        switch = [math.inf if clip.after is None else clip.switch_frame for clip in clips]
        since = frame - torch.tensor(switch, dtype=torch.float64, device=device)[:, None]
        u = (since / SWITCH_FRAMES).clamp(0, 1)
        settled = (since - SWITCH_FRAMES).clamp(min=0)
        mixed = SWITCH_FRAMES * (u**3 - u**4 / 2) + settled
        return cls(frame, u * u * (3 - 2 * u), mixed, Chances.of(clips, device, variety))

    def between(self, before: Tensor, after: Tensor) -> Tensor:
        """[B, F] on the way from `before` [B] to `after` [B]."""
        return torch.lerp(before[:, None].expand_as(self.mix), after[:, None].expand_as(self.mix), self.mix)

    def wave(self, period: float, shift: float = 0.0) -> Tensor:
        """A sine of the frame, which starts wherever the clip's seed says."""
        turn = self.frame / period + self.chances.phase[:, None] + shift
        return torch.sin(2 * math.pi * (turn % 1))


def weights(clips: Sequence[Clip], attribute: str, kind: type[StrEnum], moment: Moment) -> Tensor:
    """How much each value of an attribute is there: [B, F, values] fp64, which sum to one."""
    values = list(kind)

    def one_hot(names: list[StrEnum]) -> Tensor:
        rows = torch.zeros(len(clips), len(values), dtype=torch.float64)
        rows[range(len(clips)), [values.index(name) for name in names]] = 1
        return rows.to(moment.mix.device)

    before = one_hot([getattr(clip.scene, attribute) for clip in clips])
    after = one_hot([getattr(clip.after or clip.scene, attribute) for clip in clips])
    return before[:, None] + moment.mix[..., None] * (after - before)[:, None]


class Pose(NamedTuple):
    """Of the subject, each [B, F]: center and half size in picture heights, tilt in radians, facing -1..1."""

    x: Tensor
    y: Tensor
    size: Tensor
    tilt: Tensor
    facing: Tensor


def pose(clips: Sequence[Clip], moment: Moment, width: float) -> Pose:
    """Where the subject is; `width` is the picture's, in its heights."""
    drift, hover, circle, sway = weights(clips, "motion", Motion, moment).unbind(-1)
    chances = moment.chances
    x = width * (0.44 + 0.12 * chances.across[:, None]) + circle * 0.24 * moment.wave(CIRCLE_PERIOD, 0.25)
    y = 0.40 + 0.06 * chances.down[:, None] + circle * 0.14 * moment.wave(CIRCLE_PERIOD)
    y = y + hover * 0.08 * moment.wave(HOVER_PERIOD) + drift * 0.008 * moment.wave(HOVER_PERIOD)
    swing = sway * moment.wave(SWAY_PERIOD)
    facing = moment.between(*_before_and_after(clips, _sign, moment.mix.device))
    return Pose(x + 0.06 * swing, y, (0.21 + 0.04 * chances.size[:, None]).expand_as(x), 0.45 * swing, facing)


def scroll(clips: Sequence[Clip], moment: Moment) -> Tensor:
    """How far the nearest layer of the world has passed by, [B, F] in picture heights; leftwards is positive."""
    before, after = _before_and_after(clips, _heading, moment.mix.device)
    passed = before[:, None] * moment.frame + (after - before)[:, None] * moment.mixed
    return DRIFT_SPEED * passed + 4 * moment.chances.start[:, None]


def _before_and_after(
    clips: Sequence[Clip], value: Callable[[Scene], float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """A number of each clip's two scenes, [B] fp64 each."""
    before = [value(clip.scene) for clip in clips]
    after = [value(clip.after or clip.scene) for clip in clips]
    first, second = torch.tensor([before, after], dtype=torch.float64, device=device)
    return first, second


def _sign(scene: Scene) -> float:
    return 1.0 if scene.facing == Facing.RIGHT else -1.0


def _heading(scene: Scene) -> float:
    return _sign(scene) if scene.motion == Motion.DRIFT else 0.0
