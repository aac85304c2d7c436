"""Prompts by frame: what a session or a clip is to show, and at which blocks its cues apply."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from engines.config.geometry import FRAMES_PER_SECOND, PATCH, SPATIAL_FACTOR, BlockLengths
from serving.errors import TimelineError

Method = Literal["linear", "slerp"]
METHODS: tuple[Method, ...] = ("linear", "slerp")

MAX_PROMPT_CHARACTERS = 10_000
MAX_BLENDED_PROMPTS = 16
MAX_WEIGHT = 1_000_000.0
MAX_CUES = 10_000
MAX_TRANSITION_BLOCKS = 1_000
MAX_SECONDS = 24 * 60 * 60
MAX_FRAMES = MAX_SECONDS * FRAMES_PER_SECOND
MAX_SIZE = 4096
SIZE_MULTIPLE = SPATIAL_FACTOR * PATCH


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


@dataclass(frozen=True)
class Settings:
    """How a clip is made, as far as its timeline says; None leaves it to the model or the caller."""

    seed: int | None = None
    height: int | None = None
    width: int | None = None
    model: str | None = None
    steps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.seed is not None:
            _require(0 <= self.seed < 1 << 64, "seed", f"{_figure(self.seed)} is outside 0..2^64-1")
        for name, pixels in (("height", self.height), ("width", self.width)):
            if pixels is not None:
                _require(
                    SIZE_MULTIPLE <= pixels <= MAX_SIZE and pixels % SIZE_MULTIPLE == 0,
                    name,
                    f"{_figure(pixels)} is no multiple of {SIZE_MULTIPLE} in {SIZE_MULTIPLE}..{MAX_SIZE}",
                )
        _require(self.model is None or self.model.strip() != "", "model", "the name of the model is empty")
        if self.steps is not None:
            _check_steps(self.steps)


def _check_steps(steps: Sequence[int]) -> None:
    _require(len(steps) > 0, "steps", "the list is empty; at least one denoising step is needed")
    for step in steps:
        _require(1 <= step <= 1000, "steps", f"step {_figure(step)} is outside 1..1000")
    for before, after in pairwise(steps):
        _require(before > after, "steps", f"step {after} follows {before}; steps must descend")


def _figure(number: int) -> str:
    return str(number) if abs(number) < 1 << 80 else "a number of more than 24 digits"


@dataclass(frozen=True)
class Timeline:
    """Cues in the order of their frames; `frames` is the length asked for, None where it is open."""

    cues: tuple[Cue, ...] = ()
    frames: int | None = None
    settings: Settings = Settings()

    def __post_init__(self) -> None:
        _require(len(self.cues) <= MAX_CUES, "cues", f"{len(self.cues)} cues are more than {MAX_CUES}")
        for number, (before, cue) in enumerate(pairwise(self.cues), start=1):
            _require(
                before.frame < cue.frame,
                f"cues[{number}]",
                f"its frame {cue.frame} does not come after frame {before.frame} of the cue before it",
            )
        if self.frames is not None:
            _require(
                1 <= self.frames <= MAX_FRAMES,
                "frames",
                f"{_figure(self.frames)} is outside 1..{MAX_FRAMES}, which are 24 hours",
            )

    def with_cue(self, cue: Cue) -> Timeline:
        """Add a cue; one on the same frame is overwritten."""
        place = self._place(cue.frame)
        taken = place < len(self.cues) and self.cues[place].frame == cue.frame
        return replace(self, cues=(*self.cues[:place], cue, *self.cues[place + taken :]))

    def without_cue(self, frame: int) -> Timeline:
        """Take the cue at `frame` away; TimelineError if there is none."""
        self.cue_at(frame)
        place = self._place(frame)
        return replace(self, cues=self.cues[:place] + self.cues[place + 1 :])

    def with_cue_moved(self, frame: int, to: int) -> Timeline:
        """Move the cue at `frame`, over one that is there already; TimelineError if there is none to move."""
        moved = replace(self.cue_at(frame), frame=to)
        return self.without_cue(frame).with_cue(moved)

    def cue_at(self, frame: int) -> Cue:
        """The cue scheduled at exactly `frame`; TimelineError if there is none."""
        place = self._place(frame)
        if place == len(self.cues) or self.cues[place].frame != frame:
            raise TimelineError("cues", f"no cue is at frame {frame}; {_listed(self.cues)}")
        return self.cues[place]

    def require_start(self) -> None:
        """Raise TimelineError unless a cue is at frame 0, where every stream begins."""
        starts = len(self.cues) > 0 and self.cues[0].frame == 0
        _require(starts, "cues", f"no cue is at frame 0, where the stream begins; {_listed(self.cues)}")

    def _place(self, frame: int) -> int:
        return bisect_left(self.cues, frame, key=lambda cue: cue.frame)


def _listed(cues: Sequence[Cue], most: int = 8) -> str:
    if not cues:
        return "there are no cues"
    frames = ", ".join(str(cue.frame) for cue in cues[:most])
    return f"cues are at {frames}" + (f" and {len(cues) - most} more frames" if len(cues) > most else "")


@dataclass(frozen=True)
class Step:
    """A prompt that comes into force with `block`, whose first pixel frame is `frame`.

    `asked_frame` is the frame of its cue. Where `source` is None, the prompt is `target`. Otherwise it is the
    `fraction` of the way, by `method`, from the prompt of step number `source` to `target`; at 1 it is `target`.
    """

    block: int
    frame: int
    asked_frame: int
    target: Blend
    source: int | None = None
    fraction: float = 1.0
    method: Method = "linear"


LONGLIVE_BLOCKS = BlockLengths(later=3, first=3)
"""Of a timeline that is read without a model."""


@dataclass(frozen=True)
class Schedule:
    """The steps of a timeline by rising block, and the number of blocks to make, None where it is open."""

    steps: tuple[Step, ...]
    blocks: int | None
    frames: int | None
    warnings: tuple[str, ...]


def frame_at(seconds: float) -> int:
    """The pixel frame nearest to a time."""
    return round(FRAMES_PER_SECOND * seconds)


def schedule(timeline: Timeline, blocks: BlockLengths = LONGLIVE_BLOCKS) -> Schedule:
    """When each cue applies: at the first block that begins at or after its frame.

    Of two cues that fall on one block the later wins. A transition is cut short by the next cue and by the end.
    TimelineError if no cue is at frame 0.
    """
    timeline.require_start()
    end = None if timeline.frames is None else blocks.block_at(timeline.frames)
    warnings: list[str] = []
    cues = _cues_by_block(timeline.cues, blocks, end, warnings)
    steps: list[Step] = []
    for (block, cue), following in zip(cues.items(), [*list(cues)[1:], end], strict=True):
        count = 1 if cue.transition is None else cue.transition.blocks
        room = count if following is None else min(count, following - block)
        steps += _steps(cue, range(block, block + room), len(steps) - 1, blocks)
        if room < count:
            warnings.append(
                f"the transition of the cue at frame {cue.frame} ends after {room} of its {count} blocks"
            )
    frames = None if end is None else blocks.pixel_frames(end)
    return Schedule(tuple(steps), end, frames, tuple(warnings))


def _cues_by_block(
    cues: Iterable[Cue], blocks: BlockLengths, end: int | None, warnings: list[str]
) -> dict[int, Cue]:
    landed: dict[int, Cue] = {}
    for cue in cues:
        block = blocks.block_at(cue.frame)
        if end is not None and block >= end:
            ends = blocks.pixel_frames(end)
            warnings.append(f"the cue at frame {cue.frame} never applies, because the clip ends at frame {ends}")
            continue
        if block in landed:
            warnings.append(
                f"the cues at frames {landed[block].frame} and {cue.frame} both fall on the block "
                f"at frame {blocks.pixel_frames(block)}; the later one wins"
            )
        landed[block] = cue
    return landed


def _steps(cue: Cue, numbers: range, source: int, blocks: BlockLengths) -> Iterator[Step]:
    for number, block in enumerate(numbers, start=1):
        frame = blocks.pixel_frames(block)
        if cue.transition is None:
            yield Step(block, frame, cue.frame, cue.blend)
        else:
            fraction, method = number / cue.transition.blocks, cue.transition.method
            yield Step(block, frame, cue.frame, cue.blend, source, fraction, method)
