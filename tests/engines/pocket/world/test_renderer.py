"""The world is a pure function of clip and frame, and shows what a scene says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from engines.errors import ConfigError
from engines.pocket.world.motion import CIRCLE_PERIOD, SWITCH_FRAMES
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import (
    ATTRIBUTES,
    Clip,
    Color,
    Facing,
    Light,
    Motion,
    Scene,
    Setting,
    Subject,
    Weather,
    combinations,
)

SCENE = Scene(Subject.FISH, Color.RED, Motion.HOVER, Setting.HILLS, Light.NOON, Weather.CLEAR)
TEN_MINUTES = 9600


@pytest.fixture(scope="module")
def world() -> Renderer:
    return Renderer(48, 80)


def test_frames_do_not_depend_on_what_is_rendered_beside_them(world: Renderer) -> None:
    clips = [Clip(SCENE, 1), Clip(replace(SCENE, weather=Weather.RAIN, motion=Motion.DRIFT), 2)]
    both = world.render(clips, [0, 30], 8)
    torch.testing.assert_close(world.render(clips[1:], [33], 2)[0], both[1, 3:5])


def test_the_seeds_of_a_world_without_variety_decide_nothing() -> None:
    clips = [Clip(SCENE, 1), Clip(SCENE, 2)]
    one, other = Renderer(48, 80, variety=0).render(clips, [0, 0], 2)
    assert torch.equal(one, other)
    one, other = Renderer(48, 80).render(clips, [0, 0], 2)
    assert (one - other).abs().amax() > 0.2


def test_a_world_of_impossible_variety_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"variety is 1\.5; it must be within 0\.\.1"):
        Renderer(48, 80, variety=1.5)


def test_a_clip_has_no_end(world: Renderer) -> None:
    late = world.render([Clip(replace(SCENE, motion=Motion.DRIFT), 1)], [100 * TEN_MINUTES], 5)
    assert late.diff(dim=1).abs().amax(dim=(0, 2, 3, 4)).min() > 0.1
    assert late.isfinite().all()


@pytest.mark.parametrize("attribute", [*ATTRIBUTES, "facing"])
def test_every_attribute_can_be_seen(world: Renderer, attribute: str) -> None:
    kind = ATTRIBUTES.get(attribute, Facing)
    values: list[dict[str, Any]] = [{attribute: value} for value in kind]
    clips = [Clip(replace(SCENE, **value), 1) for value in values]
    pictures = world.render(clips, [40] * len(clips), 9)
    for one in range(len(clips)):
        for other in range(one):
            assert (pictures[one] - pictures[other]).abs().amax() > 0.3


def test_a_cyclic_motion_comes_back(world: Renderer) -> None:
    clip = Clip(replace(SCENE, motion=Motion.CIRCLE, subject=Subject.BALLOON), 3)
    once, again = world.render([clip, clip], [5, 5 + CIRCLE_PERIOD], 2)
    torch.testing.assert_close(once, again, atol=1e-4, rtol=0)


def test_a_switch_begins_at_its_frame_and_is_soon_over(world: Renderer) -> None:
    after = replace(SCENE, light=Light.NIGHT, weather=Weather.SNOW)
    switched = world.render([Clip(SCENE, 1, after, switch_frame=20)], [0], 20 + SWITCH_FRAMES + 4)[0]
    before, later = world.render([Clip(SCENE, 1), Clip(after, 1)], [0, 20 + SWITCH_FRAMES], 4)
    torch.testing.assert_close(switched[:4], before)
    torch.testing.assert_close(switched[20 + SWITCH_FRAMES :], later)
    assert switched[21].sub(switched[20]).abs().amax() > 0.001


def test_the_landscape_goes_on_from_where_a_drift_turns_round(world: Renderer) -> None:
    drift = replace(SCENE, motion=Motion.DRIFT)
    turned = Clip(drift, 1, replace(drift, facing=Facing.LEFT), switch_frame=10)
    frames = world.render([turned], [0], 40)[0, :, :, 40:]
    assert frames.diff(dim=0).abs().mean(dim=(1, 2, 3)).max() < 0.02


def test_a_tenth_of_the_combinations_is_held_out() -> None:
    everything = combinations()
    assert len(everything) == len(set(everything)) == 11_520
    assert sum(scene.held_out for scene in everything) == pytest.approx(1152, rel=0.05)


def test_random_scenes_keep_to_their_side() -> None:
    generator = np.random.default_rng(0)
    assert not any(Scene.random(generator).held_out for _ in range(200))
    assert all(Scene.random(generator, held_out=True).held_out for _ in range(20))


def test_a_world_too_small_for_a_landscape_is_refused() -> None:
    with pytest.raises(ConfigError, match="16x80"):
        Renderer(16, 80)
