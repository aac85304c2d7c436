"""Cues: prompts scheduled at frames, their blends and transitions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from serving.errors import TimelineError

Method = Literal["linear", "slerp"]


METHODS: tuple[Method, ...] = ("linear", "slerp")


MAX_PROMPT_CHARACTERS = 10_000


MAX_BLENDED_PROMPTS = 16


MAX_WEIGHT = 1_000_000.0


MAX_TRANSITION_BLOCKS = 1_000


LAST_FRAME = (1 << 53) - 1
"""The largest number that every client can hold exactly."""


_HALF = re.compile(r"[\ud800-\udfff]")

_LASTING = re.compile(r"[0-9A-Za-z\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
"""Characters that no cleaning takes away, unless they are part of an entity or of an escape for terminals."""


_BLANK = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U0001d159\U000e0100-\U000e01ef]"
)
"""Characters that count as printable and show nothing: fillers, variation selectors, blanks."""


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


def check_whole(text: str, place: str, noun: str = "text") -> None:
    """Raise TimelineError for half characters, which JSON can say and UTF-8 cannot."""
    if half := _HALF.search(text):
        raise TimelineError(place, f"the {noun} contains {half[0]!r}, half a character, which no encoder can read")


def check_prompt(text: str, place: str) -> None:
    """Raise TimelineError unless `text` can be a prompt."""
    _require(
        len(text) <= MAX_PROMPT_CHARACTERS,
        place,
        f"the prompt has {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are read",
    )
    check_whole(text, place, "prompt")
    if not _lasts(text):
        cleaned = f" once {text[:40]!r} is cleaned" if _is_visible(text) else ""
        raise TimelineError(place, f"the prompt is empty{cleaned}; say who or what is seen, and where")


def is_plain(text: str) -> bool:
    """Whether what cleaning leaves of a text is seen without cleaning it."""
    return "&" not in text and "\x1b" not in text and _LASTING.search(text) is not None


def clean_ahead(texts: Iterable[str]) -> None:
    """Clean texts that are to be checked: a long one takes some 30 ms, which belongs in a thread of its own."""
    for text in texts:
        if len(text) <= MAX_PROMPT_CHARACTERS:
            _lasts(text)


def _lasts(text: str) -> bool:
    """Whether there is something to be seen in a text once it has been cleaned for the model."""
    return is_plain(text) or _lasts_cleaned(text)


@lru_cache(maxsize=256)
def _lasts_cleaned(text: str) -> bool:
    # Clients load nothing of the engine, and few of their prompts need it.
    from engines.text.cleaning import clean_prompt

    return _is_visible(text) and _is_visible(clean_prompt(text))


def _is_visible(text: str) -> bool:
    return any(character.isprintable() and not character.isspace() for character in _BLANK.sub("", text))


def check_weight(weight: float, place: str) -> None:
    """Raise TimelineError unless `weight` can be one of a blend's."""
    _require(math.isfinite(weight), place, f"{weight} is not a finite number")
    _require(0 <= weight <= MAX_WEIGHT, place, f"{weight:.15g} is outside 0..{MAX_WEIGHT:.0f}")


def check_count(count: int, place: str) -> None:
    """Raise TimelineError unless so many prompts can be blended."""
    _require(count > 0, place, "the list is empty; at least one prompt is needed")
    _require(
        count <= MAX_BLENDED_PROMPTS,
        place,
        f"{count} prompts are blended; at most {MAX_BLENDED_PROMPTS} can be",
    )


def figure(number: float) -> str:
    """A number as messages say it."""
    return "a number of more than 24 digits" if 1 << 80 <= abs(number) < math.inf else str(number)


@dataclass(frozen=True)
class Blend:
    """One prompt, or several with their weights. Only the proportions of the weights matter."""

    parts: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, text: str) -> Blend:
        """A single prompt."""
        return cls(((text, 1.0),))

    def __post_init__(self) -> None:
        check_count(len(self.parts), "prompts")
        for number, (text, weight) in enumerate(self.parts):
            check_prompt(text, f"prompts[{number}].text")
            check_weight(weight, f"prompts[{number}].weight")
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
            f"{figure(self.blocks)} blocks are outside 1..{MAX_TRANSITION_BLOCKS}",
        )
        _require(
            self.method in METHODS, "transition.method", f"{self.method!r} is unknown; known: {', '.join(METHODS)}"
        )


@dataclass(frozen=True)
class Restyling:
    """How a video's pictures are restyled from a cue on; what is None stays as it was.

    Args:
        noise_scale: the share of noise that they are mixed with.
        follows_motion: whether it is less where they move.
        renews_sink: the next frames are those that are always attended, in place of the first ones.
        cuts: the video opens anew with the next pictures, as if nothing had been before them.

    """

    noise_scale: float | None = None
    follows_motion: bool | None = None
    renews_sink: bool = False
    cuts: bool = False

    @property
    def changes_something(self) -> bool:
        """Whether anything is said."""
        return self != Restyling()

    def changed(self, later: Restyling) -> Restyling:
        """What both say; where they differ it is as `later` has it."""
        return Restyling(
            self.noise_scale if later.noise_scale is None else later.noise_scale,
            self.follows_motion if later.follows_motion is None else later.follows_motion,
            self.renews_sink or later.renews_sink,
            self.cuts or later.cuts,
        )

    def __post_init__(self) -> None:
        scale = self.noise_scale
        _require(
            scale is None or (math.isfinite(scale) and 0 < scale <= 1),
            "restyling.noise_scale",
            f"{scale} is outside 0..1",
        )


@dataclass(frozen=True)
class Cue:
    """What is to be in force from pixel frame `frame` on; `restyling` is of sessions that take pictures."""

    frame: int
    blend: Blend
    transition: Transition | None = None
    restyling: Restyling | None = None

    def __post_init__(self) -> None:
        _require(self.frame >= 0, "frame", f"frame {self.frame} is before the beginning, frame 0")
        _require(
            self.frame > 0 or self.transition is None,
            "transition",
            "the cue at frame 0 has no prompt before it to change from",
        )

    @property
    def cuts(self) -> bool:
        """Whether the video opens anew with it."""
        return self.restyling is not None and self.restyling.cuts

    def restyled(self, restyling: Restyling) -> Cue:
        """The same, with which pictures are restyled so, too."""
        before = self.restyling
        return replace(self, restyling=restyling if before is None else before.changed(restyling))
