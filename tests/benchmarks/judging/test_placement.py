"""Finding how far a clip's subject is from its place."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmarks.judging.placement import displacement, outline, shift
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import Clip, Color, Light, Motion, Scene, Setting, Subject, Weather

CLIP = Clip(Scene(Subject.BALLOON, Color.RED, Motion.CIRCLE, Setting.HILLS, Light.NOON, Weather.RAIN), seed=3)


@pytest.mark.parametrize("motion", list(Motion))
def test_a_rendered_subject_is_in_its_place(motion: Motion) -> None:
    clip, world = replace(CLIP, scene=replace(CLIP.scene, motion=motion)), Renderer()
    assert displacement(world.render([clip], [7], 3), outline(world, [clip], 7, 3)).max() < 0.01


@pytest.mark.parametrize(("down", "across"), [(0, 16), (12, -16), (-9, 0)])
def test_a_subject_is_found_where_it_was_moved_to(down: int, across: int) -> None:
    world = Renderer()
    moved = world.render([CLIP], [7], 3).roll((down, across), (-2, -1))
    found = displacement(moved, outline(world, [CLIP], 7, 3))
    assert found[0].tolist() == pytest.approx([math.hypot(down, across) / 160] * 3, abs=0.01)


def test_where_a_subject_was_moved_to_is_told() -> None:
    world = Renderer()
    moved = world.render([CLIP], [7], 1).roll((8, -16), (-2, -1))
    assert shift(moved, outline(world, [CLIP], 7, 1))[0, 0].tolist() == pytest.approx([8, -16], abs=1)
