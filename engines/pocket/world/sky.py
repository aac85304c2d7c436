"""Light and weather: the sky, the tint that falls on everything, rain, snow and fog."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engines.pocket.world.landscape import HORIZON, View
from engines.pocket.world.scene import Light, Weather

RGB = tuple[float, float, float]


class Palette(NamedTuple):
    """Of one time of day. `disc` is sun or moon: center x (share of the width), center y, radius."""

    top: RGB
    horizon: RGB
    tint: RGB
    disc_color: RGB
    disc: tuple[float, float, float]
    night: float


PALETTES = {
    Light.DAWN: Palette(
        (0.52, 0.62, 0.86), (1.0, 0.78, 0.74), (0.92, 0.80, 0.80), (1.0, 0.95, 0.75), (0.16, 0.52, 0.07), 0.0
    ),
    Light.NOON: Palette(
        (0.20, 0.50, 0.95), (0.72, 0.88, 1.0), (1.0, 1.0, 1.0), (1.0, 1.0, 0.85), (0.8, 0.1, 0.05), 0.0
    ),
    Light.DUSK: Palette(
        (0.30, 0.14, 0.42), (1.0, 0.45, 0.16), (0.72, 0.46, 0.40), (1.0, 0.66, 0.2), (0.84, 0.55, 0.1), 0.5
    ),
    Light.NIGHT: Palette(
        (0.01, 0.02, 0.09), (0.07, 0.11, 0.28), (0.24, 0.28, 0.46), (0.95, 0.95, 0.85), (0.82, 0.14, 0.06), 1.0
    ),
}

OVERCAST = {Weather.CLEAR: 0.0, Weather.RAIN: 0.75, Weather.SNOW: 0.6, Weather.FOG: 0.7}
"""How much of the sky's own color the clouds take."""

CLOUD = {Weather.CLEAR: 1.0, Weather.RAIN: 0.55, Weather.SNOW: 0.85, Weather.FOG: 0.85}
"""Brightness of the clouds."""

RAIN_STEP, SNOW_STEP = (7, -2), (2, 1)
"""Pixels that rain and snow move in a frame, down and across: whole ones, so that nothing has to be resampled."""

FLAKES, DROPS, STARS = 110, 120, 50
"""In a picture of 96x160; more would leave no room for the picture in the latents."""


class Air(NamedTuple):
    """Light and weather of the clips at their frames, each [B, F, ...]."""

    top: Tensor
    horizon: Tensor
    tint: Tensor
    night: Tensor
    lights: Tensor
    weathers: Tensor
    overcast: Tensor

    @classmethod
    def of(cls, lights: Tensor, weathers: Tensor) -> Air:
        """From the weights of the kinds of light and of weather, [B, F, 4] each."""
        palettes = [PALETTES[light] for light in Light]

        def mixed(values: list[RGB]) -> Tensor:
            return lights @ lights.new_tensor(values)

        overcast = weathers @ weathers.new_tensor([OVERCAST[w] for w in Weather])
        cloud = weathers @ weathers.new_tensor([CLOUD[w] for w in Weather])
        top, horizon = mixed([p.top for p in palettes]), mixed([p.horizon for p in palettes])
        gray = (0.5 * (top + horizon).mean(-1, keepdim=True) + 0.5 * horizon) * cloud.unsqueeze(-1)
        tint = mixed([p.tint for p in palettes]) * (
            1 - 0.3 * weathers[..., list(Weather).index(Weather.RAIN), None]
        )
        night = lights @ lights.new_tensor([p.night for p in palettes])
        share = overcast.unsqueeze(-1)
        return cls(
            torch.lerp(top, gray, share),
            torch.lerp(horizon, gray, 0.8 * share),
            tint,
            night,
            lights,
            weathers,
            overcast,
        )

    def much(self, weather: Weather) -> Tensor:
        """How much of one weather there is, [B, F, 1, 1, 1]."""
        return self.weathers[..., list(Weather).index(weather), None, None, None]


def sky(air: Air, stars: Tensor, view: View) -> Tensor:
    """[B, F, 3, H, W]: a gradient, then the `stars` [H, W], sun and moon."""
    down = (view.y / HORIZON).clamp(0, 1).expand(-1, view.x.shape[0])
    picture = torch.lerp(_column(air.top), _column(air.horizon), down)
    clear = (1 - air.overcast)[..., None, None, None]
    picture = picture + stars * (air.night.clamp(min=0.5) * 2 - 1)[..., None, None, None] * clear
    for index, light in enumerate(Light):
        share = air.lights[..., index, None, None, None] * (0.15 + 0.85 * clear)
        if share.max() > 0:
            picture = _disc(picture, PALETTES[light], share, view)
    return picture


def _disc(picture: Tensor, palette: Palette, share: Tensor, view: View) -> Tensor:
    x, y, radius = palette.disc
    distance = torch.hypot(view.x - x * view.x[-1], view.y - y)
    edge = ((radius - distance) / view.pixel + 0.5).clamp(0, 1)
    halo = 0.35 * torch.exp(-((distance / (3 * radius)) ** 2))
    color = picture.new_tensor(palette.disc_color).view(3, 1, 1)
    return torch.lerp(picture, color.expand_as(picture), torch.maximum(edge, halo) * share)


def fog(picture: Tensor, air: Air, depth: Tensor) -> Tensor:
    """`picture` seen through as much fog as there is, where `depth` of it lies in front: 0..1."""
    veil = _column(air.horizon * 0.6 + 0.4 * air.horizon.mean(-1, keepdim=True))
    return torch.lerp(picture, veil.expand_as(picture), air.much(Weather.FOG) * depth)


def fall(picture: Tensor, air: Air, frame: Tensor, start: Tensor, rain: Tensor, snow: Tensor) -> Tensor:
    """Rain and snow in front of everything. `frame` [B, F], `start` [B] decides where the fall begins."""
    for weather, texture, step, color in (
        (Weather.RAIN, rain, RAIN_STEP, (0.80, 0.86, 0.95)), (Weather.SNOW, snow, SNOW_STEP, (1.0, 1.0, 1.0))
    ):  # fmt: skip
        much = air.much(weather)
        chosen = (much.amax(dim=(1, 2, 3, 4)) > 0).nonzero().flatten()
        if len(chosen):
            cover = _scrolled(texture, frame[chosen], start[chosen], step).unsqueeze(2) * much[chosen]
            light = picture.new_tensor(color).view(3, 1, 1) * (0.45 + 0.55 * _column(air.tint[chosen]))
            part = picture[chosen]
            picture = picture.index_copy(0, chosen, torch.lerp(part, light.expand_as(part), cover))
    return picture


def _scrolled(texture: Tensor, frame: Tensor, start: Tensor, step: tuple[int, int]) -> Tensor:
    """[n, F, H, W] of a texture [H, W] that moves on by `step` pixels a frame and wraps around."""
    height, width = texture.shape
    moved = frame + (start * 4096).round()[:, None]
    rows = (torch.arange(height, device=texture.device) - (moved * step[0])[..., None]) % height
    columns = (torch.arange(width, device=texture.device) - (moved * step[1])[..., None]) % width
    return texture[rows.long()[..., :, None], columns.long()[..., None, :]]


def rain_texture(height: int, width: int) -> Tensor:
    """Slanted streaks, [H, W] in 0..1."""
    points = [(dy, round(dy * RAIN_STEP[1] / RAIN_STEP[0]), 0.65) for dy in range(11)]
    return _splatter(height, width, DROPS, points, seed=1)


def snow_texture(height: int, width: int) -> Tensor:
    """Soft flakes, [H, W] in 0..1."""
    points = [(dy, dx, 1.0 if abs(dy * dx) < 2 else 0.4) for dy in (-1, 0, 1, 2) for dx in (-1, 0, 1, 2)]
    return _splatter(height, width, FLAKES, points, seed=2)


def stars_texture(height: int, width: int) -> Tensor:
    """[H, W] in 0..1, brighter towards the top."""
    down = (torch.arange(height).unsqueeze(1) + 0.5) / height
    return _splatter(height, width, STARS, [(0, 0, 0.9)], seed=3) * (1 - down / HORIZON).clamp(0, 1)


def _splatter(height: int, width: int, count: int, points: list[tuple[int, int, float]], seed: int) -> Tensor:
    """A texture with `points` (row, column, cover) around so many random places."""
    generator = np.random.default_rng(seed)
    number = round(count * height * width / (96 * 160))
    rows, columns = generator.integers(height, size=number), generator.integers(width, size=number)
    texture = np.zeros((height, width), dtype=np.float32)
    for dy, dx, cover in points:
        np.maximum.at(texture, ((rows + dy) % height, (columns + dx) % width), cover)
    return torch.from_numpy(texture)


def _column(color: Tensor) -> Tensor:
    """[B, F, 3] to [B, F, 3, 1, 1]."""
    return color[..., None, None]
