"""The six subjects: each a few flat shapes, painted one over the other around the subject's center.

Shapes live in the subject's own coordinates: `u` points where it looks, `v` down, and it reaches about one unit
to each side. A shape is its distance function: negative inside, positive outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from engines.pocket.world.landscape import View
from engines.pocket.world.motion import Pose
from engines.pocket.world.scene import Subject

FLAP_PERIOD = 12
"""Frames of a wing beat; a fish's tail takes twice as long."""

NARROWEST = 0.12
"""A subject that turns round is never thinner than this share of its length."""


class Paint(NamedTuple):
    """Colors of the parts, [n, F, 3, 1, 1] each, and what moves with the frame, [n, F, 1, 1]."""

    main: Tensor
    dark: Tensor
    pale: Tensor
    beat: Tensor


class Part(NamedTuple):
    """A shape and its color."""

    shape: Tensor
    color: Tensor


def ellipse(u: Tensor, v: Tensor, center: tuple[float, float], radii: tuple[float, float]) -> Tensor:
    """Only near its edge a true distance, which is where it matters."""
    scaled = torch.sqrt(((u - center[0]) / radii[0]) ** 2 + ((v - center[1]) / radii[1]) ** 2)
    return (scaled - 1) * min(radii)


def box(u: Tensor, v: Tensor, center: tuple[float, float], half: tuple[float, float]) -> Tensor:
    """A rectangle."""
    return torch.maximum((u - center[0]).abs() - half[0], (v - center[1]).abs() - half[1])


def triangle(u: Tensor, v: Tensor, *corners: tuple[float, float]) -> Tensor:
    """Of three corners, in clockwise order as seen on the screen."""
    edges = []
    for (u0, v0), (u1, v1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        length = math.hypot(u1 - u0, v1 - v0)
        edges.append(((u - u0) * (v1 - v0) - (v - v0) * (u1 - u0)) / length)
    return torch.stack(edges).amax(0)


def _balloon(u: Tensor, v: Tensor, paint: Paint) -> list[Part]:
    envelope = ellipse(u, v, (0, -0.3), (0.68, 0.72))
    return [
        Part(triangle(u, v, (-0.52, 0.1), (0.52, 0.1), (0, 0.95)), paint.dark),
        Part(envelope, paint.main),
        Part(torch.maximum(envelope, u.abs() - 0.16), paint.pale),
        Part(box(u, v, (0, 0.9), (0.2, 0.15)), _fixed(u, 0.45, 0.28, 0.14)),
    ]


def _sailboat(u: Tensor, v: Tensor, paint: Paint) -> list[Part]:
    hull = torch.maximum(ellipse(u, v, (0, 0.45), (0.95, 0.5)), 0.45 - v)
    return [
        Part(box(u, v, (-0.05, -0.2), (0.045, 0.7)), _fixed(u, 0.35, 0.22, 0.12)),
        Part(triangle(u, v, (0.05, -0.95), (0.75, 0.3), (0.05, 0.3)), paint.main),
        Part(triangle(u, v, (-0.15, -0.75), (-0.15, 0.3), (-0.65, 0.3)), paint.pale),
        Part(hull, _fixed(u, 0.42, 0.25, 0.13)),
    ]


def _bird(u: Tensor, v: Tensor, paint: Paint) -> list[Part]:
    lift = 0.75 * paint.beat
    wing = ellipse(u + 0.1, v + 0.45 * lift, (0, 0), (0.3, 0.5))
    return [
        Part(triangle(u, v, (-0.95, -0.25), (-0.4, 0.0), (-0.95, 0.3)), paint.dark),
        Part(ellipse(u, v, (0, 0.05), (0.62, 0.3)), paint.main),
        Part(ellipse(u, v, (0.6, -0.2), (0.24, 0.24)), paint.main),
        Part(triangle(u, v, (0.8, -0.3), (1.1, -0.17), (0.8, -0.06)), _fixed(u, 1.0, 0.6, 0.1)),
        Part(wing, paint.dark),
        Part(ellipse(u, v, (0.66, -0.25), (0.07, 0.07)), _fixed(u, 0.05, 0.05, 0.08)),
    ]


def _train(u: Tensor, v: Tensor, paint: Paint) -> list[Part]:
    wheels = torch.stack([ellipse(u, v, (at, 0.55), (0.2, 0.2)) for at in (-0.6, 0.0, 0.6)]).amin(0)
    return [
        Part(box(u, v, (0.6, -0.35), (0.12, 0.3)), paint.dark),
        Part(box(u, v, (0.05, 0.12), (0.9, 0.35)), paint.main),
        Part(box(u, v, (-0.5, -0.3), (0.38, 0.4)), paint.main),
        Part(box(u, v, (-0.5, -0.35), (0.2, 0.17)), _fixed(u, 0.85, 0.95, 1.0)),
        Part(box(u, v, (0.05, 0.38), (0.9, 0.1)), paint.dark),
        Part(wheels, _fixed(u, 0.1, 0.1, 0.12)),
    ]


def _fish(u: Tensor, v: Tensor, paint: Paint) -> list[Part]:
    wag = 0.25 * paint.beat
    return [
        Part(triangle(u, v + wag, (-1.0, -0.45), (-0.45, 0.0), (-1.0, 0.45)), paint.dark),
        Part(triangle(u, v, (-0.3, -0.35), (0.05, -0.7), (0.3, -0.3)), paint.dark),
        Part(ellipse(u, v, (0.1, 0), (0.7, 0.44)), paint.main),
        Part(ellipse(u, v, (0.0, 0.1), (0.14, 0.26)), paint.pale),
        Part(ellipse(u, v, (0.5, -0.1), (0.13, 0.13)), _fixed(u, 1.0, 1.0, 1.0)),
        Part(ellipse(u, v, (0.54, -0.1), (0.07, 0.07)), _fixed(u, 0.03, 0.03, 0.05)),
    ]


def _lantern(u: Tensor, v: Tensor, paint: Paint) -> list[Part]:
    body = ellipse(u, v, (0, 0), (0.56, 0.68))
    brown = _fixed(u, 0.25, 0.16, 0.1)
    return [
        Part(box(u, v, (0, -0.85), (0.03, 0.2)), brown),
        Part(body, paint.main),
        Part(torch.maximum(body, (u.abs() - 0.33).abs() - 0.03), paint.dark),
        Part(ellipse(u, v, (0, 0.05), (0.12, 0.3)), _fixed(u, 1.0, 0.93, 0.6)),
        Part(box(u, v, (0, -0.64), (0.32, 0.1)), brown),
        Part(box(u, v, (0, 0.66), (0.28, 0.09)), brown),
        Part(box(u, v, (0, 0.9), (0.05, 0.18)), paint.dark),
    ]


DRAWINGS: dict[Subject, Callable[[Tensor, Tensor, Paint], list[Part]]] = {
    Subject.BALLOON: _balloon, Subject.SAILBOAT: _sailboat, Subject.BIRD: _bird,
    Subject.TRAIN: _train, Subject.FISH: _fish, Subject.LANTERN: _lantern,
}  # fmt: skip


class Figure(NamedTuple):
    """A subject's colors [n, F, 3, H, W], and how much of each pixel it covers [n, F, 1, H, W]."""

    color: Tensor
    cover: Tensor


def draw(subject: Subject, color: Tensor, pose: Pose, frame: Tensor, view: View) -> Figure:
    """One kind of subject in colors [n, F, 3], at its poses and frames [n, F]."""
    u, v = _own_coordinates(pose, view)
    period = FLAP_PERIOD * (2 if subject == Subject.FISH else 1)
    beat = torch.sin(2 * math.pi * ((frame / period) % 1)).float()[..., None, None]
    main = color[..., None, None]
    paint = Paint(main, main * 0.55, main + (1 - main) * 0.45, beat)
    picture, cover = main, u.new_zeros(1)
    pixels = (pose.size / view.pixel).float()[..., None, None]
    for part in DRAWINGS[subject](u, v, paint):
        edge = (0.5 - part.shape * pixels).clamp(0, 1).unsqueeze(2)
        picture = torch.lerp(picture.expand(*edge.shape[:2], 3, *edge.shape[3:]), part.color, edge)
        cover = torch.maximum(cover, edge)
    return Figure(picture, cover)


def glow(pose: Pose, view: View) -> Tensor:
    """How much light falls around a subject that shines: [n, F, 1, H, W] in 0..1."""
    u, v = _own_coordinates(pose, view)
    return torch.exp(-(u * u + v * v) / 2.5).unsqueeze(2)


def _own_coordinates(pose: Pose, view: View) -> tuple[Tensor, Tensor]:
    """[n, F, H, W] each."""
    x, y, size, tilt, facing = (value.float()[..., None, None] for value in pose)
    right, down = (view.x - x) / size, (view.y - y) / size
    turned = torch.where(facing < 0, -1.0, 1.0) * facing.abs().clamp(min=NARROWEST)
    along = right * torch.cos(tilt) + down * torch.sin(tilt)
    return along / turned, down * torch.cos(tilt) - right * torch.sin(tilt)


def _fixed(like: Tensor, *color: float) -> Tensor:
    return like.new_tensor(color).view(3, 1, 1)
