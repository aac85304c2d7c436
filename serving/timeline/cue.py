"""Cues: prompts scheduled at frames, their blends and transitions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from serving.errors import TimelineError

Method = Literal["linear", "slerp"]


METHODS: tuple[Method, ...] = ("linear", "slerp")


MAX_PROMPT_CHARACTERS = 10_000


MAX_BLENDED_PROMPTS = 16


MAX_WEIGHT = 1_000_000.0


MAX_TRANSITION_BLOCKS = 1_000


@contextmanager
def within(place: str) -> Iterator[None]:
    """Name the errors raised inside as parts of `place`."""
    try:
        yield
    except TimelineError as error:
        raise error.within(place) from None


def _require(holds: bool, place: str, problem: str) -> None:
    if not holds:
        raise TimelineError(place, problem)


def check_prompt(text: str, place: str) -> None:
    """Raise TimelineError unless `text` can be a prompt."""
    visible = any(character.isprintable() and not character.isspace() for character in text)
    _require(visible, place, "the prompt is empty; say who or what is seen, and where")
    _require(
        len(text) <= MAX_PROMPT_CHARACTERS,
        place,
        f"the prompt has {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are read",
    )
    half = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
    _require(half is None, place, f"the prompt contains {half!r}, half a character, which no encoder can read")


@dataclass(frozen=True)
class Blend:
    """One prompt, or several with their weights. Only the proportions of the weights matter."""

    parts: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, text: str) -> Blend:
        """A single prompt."""
        return cls(((text, 1.0),))

    def __post_init__(self) -> None:
        count = len(self.parts)
        _require(count > 0, "prompts", "the list is empty; at least one prompt is needed")
        _require(
            count <= MAX_BLENDED_PROMPTS,
            "prompts",
            f"{count} prompts are blended; at most {MAX_BLENDED_PROMPTS} can be",
        )
        for number, (text, weight) in enumerate(self.parts):
            check_prompt(text, f"prompts[{number}].text")
            _require(
                0 <= weight <= MAX_WEIGHT,
                f"prompts[{number}].weight",
                f"the weight {weight:g} is outside 0..{MAX_WEIGHT:g}",
            )
        _require(sum(weight for _, weight in self.parts) > 0, "prompts", "all weights are 0; one must be positive")

    @property
    def text(self) -> str:
        """The blend in words: `a (0.7) + b (0.3)`."""
        if len(self.parts) == 1:
            return self.parts[0][0]
        total = math.fsum(weight for _, weight in self.parts)
        return " + ".join(f"{text} ({weight / total:.3g})" for text, weight in self.parts)


@dataclass(frozen=True)
class Transition:
    """A change in `blocks` equal steps, one a block, the last of which is the new prompt."""

    blocks: int
    method: Method = "linear"

    def __post_init__(self) -> None:
        _require(
            1 <= self.blocks <= MAX_TRANSITION_BLOCKS,
            "transition.blocks",
            f"{self.blocks} blocks are outside 1..{MAX_TRANSITION_BLOCKS}",
        )
        _require(
            self.method in METHODS, "transition.method", f"{self.method!r} is unknown; known: {', '.join(METHODS)}"
        )


@dataclass(frozen=True)
class Cue:
    """What is to be in force from pixel frame `frame` on."""

    frame: int
    blend: Blend
    transition: Transition | None = None

    def __post_init__(self) -> None:
        _require(self.frame >= 0, "frame", f"frame {self.frame} is before the beginning, frame 0")
        _require(
            self.frame > 0 or self.transition is None,
            "transition",
            "the cue at frame 0 has no prompt before it to change from",
        )
