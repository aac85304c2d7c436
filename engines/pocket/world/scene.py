"""What can be seen in the pocket model's world: a subject that moves in a setting, under a light and a weather."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import product
from typing import Self, TypeVar

import numpy as np

ValueT = TypeVar("ValueT", bound=StrEnum)

HELD_OUT_SHARE = 10
"""One combination in so many is never trained on."""


class Subject(StrEnum):
    """Who is in the picture."""

    BALLOON = "balloon"
    SAILBOAT = "sailboat"
    BIRD = "bird"
    TRAIN = "train"
    FISH = "fish"
    LANTERN = "lantern"


class Color(StrEnum):
    """Of the subject."""

    RED = "red"
    YELLOW = "yellow"
    GREEN = "green"
    BLUE = "blue"
    PURPLE = "purple"
    WHITE = "white"


class Motion(StrEnum):
    """How the subject moves: all of them can go on for ever."""

    DRIFT = "drift"
    """Straight on; the camera follows, and the world scrolls by."""
    HOVER = "hover"
    """Up and down on the spot."""
    CIRCLE = "circle"
    """Round and round."""
    SWAY = "sway"
    """Tilting from side to side, like a pendulum."""


class Setting(StrEnum):
    """What lies below."""

    SEA = "sea"
    HILLS = "hills"
    DESERT = "desert"
    CITY = "city"
    FOREST = "forest"


class Light(StrEnum):
    """The time of day."""

    DAWN = "dawn"
    NOON = "noon"
    DUSK = "dusk"
    NIGHT = "night"


class Weather(StrEnum):
    """What falls from the sky or hangs in the air."""

    CLEAR = "clear"
    RAIN = "rain"
    SNOW = "snow"
    FOG = "fog"


class Facing(StrEnum):
    """Where the subject looks and drifts to."""

    LEFT = "left"
    RIGHT = "right"


@dataclass(frozen=True)
class Scene:
    """One combination of attributes. Captions always name the first six; the facing may go unmentioned."""

    subject: Subject
    color: Color
    motion: Motion
    setting: Setting
    light: Light
    weather: Weather
    facing: Facing = Facing.RIGHT

    @classmethod
    def random(cls, generator: np.random.Generator, *, held_out: bool = False) -> Self:
        """A scene drawn evenly from those that are held out of training, or from the others."""
        while True:
            scene = cls(
                _any(Subject, generator), _any(Color, generator), _any(Motion, generator),
                _any(Setting, generator), _any(Light, generator), _any(Weather, generator),
                _any(Facing, generator),
            )  # fmt: skip
            if scene.held_out == held_out:
                return scene

    @property
    def held_out(self) -> bool:
        """Whether this combination, facing either way, is kept for judging."""
        name = " ".join(str(getattr(self, attribute)) for attribute in ATTRIBUTES)
        return zlib.crc32(name.encode()) % HELD_OUT_SHARE == 0

    def differing(self, other: Scene) -> tuple[str, ...]:
        """Names of the attributes, the facing among them, in which the two scenes differ."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name))


def _any(kind: type[ValueT], generator: np.random.Generator) -> ValueT:
    values = list(kind)
    return values[generator.integers(len(values))]


ATTRIBUTES: dict[str, type[StrEnum]] = {
    "subject": Subject, "color": Color, "motion": Motion, "setting": Setting, "light": Light, "weather": Weather,
}  # fmt: skip
"""What a judge reads from a clip: names of `Scene`'s fields, as stored results spell them, and their values."""


@dataclass(frozen=True)
class Clip:
    """An endless clip of the world.

    `seed` decides what no caption tells: phases, places, sizes, the lie of the land. With `after` the world turns
    into that scene, beginning at frame `switch_frame`; subject, color and all else that `after` shares stay.
    """

    scene: Scene
    seed: int
    after: Scene | None = None
    switch_frame: int = 0


def combinations() -> list[Scene]:
    """Every combination once, facing right."""
    return [Scene(*values) for values in product(Subject, Color, Motion, Setting, Light, Weather)]
