"""Draws what the streams of a measurement are to show: the same ones every time, from seeds kept for that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from benchmarks.judging.footage import Cue
from engines.pocket.world.captions import caption, change_caption
from engines.pocket.world.phrases import Phrasings
from engines.pocket.world.scene import ATTRIBUTES, Scene

FIRST_SEED = 1_800_000_000
"""Of clips and streams that are measured."""

SwitchKind = Literal["weather", "one", "several"]
"""What a prompt switch changes: the weather alone, one other attribute, or two or three of all six."""

SWITCH_KINDS: tuple[SwitchKind, ...] = ("weather", "one", "several")

PROMPT, SWITCH, DRIFT = range(3)


@dataclass(frozen=True)
class Role:
    """A cue, and whether its words are of a kind that training never uses."""

    cue: Cue
    phrasings: Phrasings


@dataclass(frozen=True)
class Turn:
    """A prompt switch: from one cue to another on the same stream."""

    kind: SwitchKind
    before: Cue
    after: Cue

    @property
    def changed(self) -> tuple[str, ...]:
        """The attributes that differ."""
        return self.before.scene.differing(self.after.scene)

    @property
    def unchanged(self) -> tuple[str, ...]:
        """The others."""
        return tuple(name for name in ATTRIBUTES if name not in self.changed)


def prompt_role(number: int) -> Role:
    """Of four prompts one each of trained and held-out combinations in trained and held-out wording."""
    random = np.random.default_rng([PROMPT, number])
    scene = Scene.random(random, held_out=number % 2 == 1)
    phrasings: Phrasings = "training" if number % 4 < 2 else "held_out"
    return Role(Cue(scene, caption(scene, random, phrasings), FIRST_SEED + number), phrasings)


def drift_cue(number: int) -> Cue:
    """A trained combination in trained wording."""
    random = np.random.default_rng([DRIFT, number])
    scene = Scene.random(random)
    return Cue(scene, caption(scene, random), FIRST_SEED + number)


def turn(number: int) -> Turn:
    """Every third switch is of one kind. Both of its scenes are trained combinations, facing the same way."""
    random = np.random.default_rng([SWITCH, number])
    kind = SWITCH_KINDS[number % len(SWITCH_KINDS)]
    while True:
        before, other = Scene.random(random), Scene.random(random)
        after = replace(before, **{name: getattr(other, name) for name in _to_change(kind, random)})
        if after != before and not after.held_out:
            break
    seed = FIRST_SEED + number
    told = change_caption(before, after, random)
    return Turn(kind, Cue(before, caption(before, random), seed), Cue(after, told, seed))


def _to_change(kind: SwitchKind, random: np.random.Generator) -> list[str]:
    if kind == "weather":
        return ["weather"]
    if kind == "one":
        return [str(random.choice([name for name in ATTRIBUTES if name != "weather"]))]
    return [str(name) for name in random.choice(list(ATTRIBUTES), size=random.integers(2, 4), replace=False)]
