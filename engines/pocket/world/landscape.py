"""The five settings: layers of land seen from the side, which wrap around so that one can drift on for ever.

Lengths are picture heights; `y` grows downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from engines.pocket.world.scene import Setting

PERIOD = 4.0
"""After which every layer repeats."""

HORIZON = 0.66


class View(NamedTuple):
    """The picture's pixels: x [W], y [H, 1], both fp32, and the length of one in heights."""

    x: Tensor
    y: Tensor
    pixel: float


class Ground(NamedTuple):
    """Land over sky: colors [n, F, 3, H, W], how much of each pixel they cover [n, F, 1, H, W]."""

    color: Tensor
    cover: Tensor


class Land(NamedTuple):
    """What a layer is drawn from, [n, F, 1] each but `lit`: scroll of the nearest layer, seed, frame, night."""

    scroll: Tensor
    seed: Tensor
    frame: Tensor
    lit: Tensor
    """How many of a city's windows are lit, 0..1."""


class Layer(NamedTuple):
    """A height of land above the horizon as a function of the place and the seed, and its color."""

    height: Callable[[Tensor, Tensor], Tensor]
    color: tuple[float, float, float]
    parallax: float


def draw(setting: Setting, land: Land, view: View) -> Ground:
    """The land of one setting, without light and weather."""
    ground = _layers(LAYERS[setting], land, view)
    if setting == Setting.SEA:
        return _waves(ground, land, view)
    if setting == Setting.CITY:
        return _windows(ground, land, view)
    return ground


def _layers(layers: tuple[Layer, ...], land: Land, view: View) -> Ground:
    shape = (*land.scroll.shape[:2], 1, view.y.shape[0], view.x.shape[0])
    color, cover = view.x.new_zeros(1, 1, 3, 1, 1), view.x.new_zeros(shape)
    for layer in layers:
        height = layer.height(_place(layer.parallax, land, view), land.seed)
        edge = ((view.y - (HORIZON - height).unsqueeze(-2)) / view.pixel + 0.5).clamp(0, 1).unsqueeze(2)
        color = torch.lerp(color, _rgb(layer.color, view.x), edge)
        cover = torch.maximum(cover, edge)
    return Ground(color, cover)


def _place(parallax: float, land: Land, view: View) -> Tensor:
    """Where in the world each column of the picture looks, [n, F, W] in 0..PERIOD."""
    return ((land.scroll * parallax) % PERIOD).float() + view.x


def _rgb(color: tuple[float, float, float], like: Tensor) -> Tensor:
    return like.new_tensor(color).view(3, 1, 1)


def _turns(x: Tensor, rounds: int, seed: Tensor, salt: float) -> Tensor:
    """An angle that goes round so many times in a period."""
    return 2 * math.pi * (x * (rounds / PERIOD) + _hash(seed, salt))


def _hash(n: Tensor, salt: float) -> Tensor:
    """A fixed jumble of numbers, in 0..1; small whole numbers go in."""
    return (torch.sin(n * 12.9898 + salt * 78.233) * 437.5453) % 1


def _hills(x: Tensor, seed: Tensor, base: float, salt: float) -> Tensor:
    return base + 0.06 * torch.sin(_turns(x, 3, seed, salt)) + 0.03 * torch.sin(_turns(x, 7, seed, salt + 1))


def _dunes(x: Tensor, seed: Tensor, base: float, salt: float) -> Tensor:
    ridge = 1 - torch.sin(_turns(x, 2, seed, salt)).abs()
    return base + 0.13 * ridge + 0.02 * torch.sin(_turns(x, 5, seed, salt + 1))


def _cells(x: Tensor, seed: Tensor, count: int, salt: float) -> tuple[Tensor, Tensor]:
    """A number 0..1 for the cell of a period that `x` is in, and where in the cell it is."""
    scaled = (x % PERIOD) * (count / PERIOD)
    return _hash(scaled.floor() + 61 * seed.round(), salt), scaled % 1


def _houses(x: Tensor, seed: Tensor, base: float, count: int, salt: float) -> Tensor:
    chance, _ = _cells(x, seed, count, salt)
    return base + 0.24 * chance


def _trees(x: Tensor, seed: Tensor, base: float, count: int, salt: float) -> Tensor:
    chance, inside = _cells(x, seed, count, salt)
    return base + (0.09 + 0.09 * chance) * (1 - (2 * inside - 1).abs())


LAYERS = {
    Setting.SEA: (Layer(lambda x, s: 0 * x + 0.02 + 0 * s, (0.10, 0.36, 0.55), 1.0),),
    Setting.HILLS: (
        Layer(lambda x, s: _hills(x, s, 0.14, 1.0), (0.42, 0.60, 0.48), 0.4),
        Layer(lambda x, s: _hills(x, s, 0.0, 3.0), (0.27, 0.55, 0.20), 1.0),
    ),
    Setting.DESERT: (
        Layer(lambda x, s: _dunes(x, s, 0.04, 1.0), (0.80, 0.60, 0.38), 0.4),
        Layer(lambda x, s: _dunes(x, s, -0.10, 3.0), (0.93, 0.76, 0.48), 1.0),
    ),
    Setting.CITY: (
        Layer(lambda x, s: _houses(x, s, 0.10, 18, 1.0), (0.52, 0.54, 0.62), 0.4),
        Layer(lambda x, s: _houses(x, s, -0.08, 14, 3.0), (0.30, 0.31, 0.38), 1.0),
    ),
    Setting.FOREST: (
        Layer(lambda x, s: _trees(x, s, 0.07, 20, 1.0), (0.22, 0.42, 0.32), 0.4),
        Layer(lambda x, s: _trees(x, s, -0.07, 14, 3.0), (0.09, 0.28, 0.13), 1.0),
    ),
}
"""From the back to the front; the last one reaches down to the bottom."""


def _waves(ground: Ground, land: Land, view: View) -> Ground:
    """Stripes of light that come nearer and pass by."""
    depth = (view.y - HORIZON).clamp(min=0).sqrt()
    across = 0.3 * torch.sin(_turns(_place(1.0, land, view), 4, land.seed, 1.0)).unsqueeze(-2)
    turn = 7 * depth - ((land.frame / 40) % 1).float().unsqueeze(-2) + across
    stripe = 0.09 * torch.sin(2 * math.pi * turn)
    return Ground(ground.color + stripe.unsqueeze(2), ground.cover)


def _windows(ground: Ground, land: Land, view: View) -> Ground:
    """Lit windows in the nearest row of houses."""
    place = _place(1.0, land, view).unsqueeze(-2)
    column, row = place * (42 / PERIOD), view.y * 16
    inside = ((column % 1 - 0.5).abs() < 0.28) & ((row % 1 - 0.5).abs() < 0.25)
    someone_in = _hash(column.floor() % 42 + 7 * row.floor(), 5.0) > 0.45
    height = _houses(_place(1.0, land, view), land.seed, -0.08, 14, 3.0) - 0.02
    house = view.y > (HORIZON - height).unsqueeze(-2)
    lamp = (inside & someone_in & house).to(view.x.dtype) * land.lit.unsqueeze(-2)
    return Ground(torch.lerp(ground.color, _rgb((1.0, 0.85, 0.45), view.x), lamp.unsqueeze(2)), ground.cover)
