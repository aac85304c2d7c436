"""Prompts by frame: what a session or a clip is to show, and at which blocks its cues apply."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from engines.config.geometry import FRAMES_PER_SECOND, PATCH, SPATIAL_FACTOR, TEMPORAL_FACTOR
from serving.errors import TimelineError
from serving.timeline.cue import Cue, _require, figure

MAX_SECONDS = 24 * 60 * 60
MAX_FRAMES = MAX_SECONDS * FRAMES_PER_SECOND
MAX_CUES = MAX_FRAMES // TEMPORAL_FACTOR
"""One in each of the shortest blocks of a day."""

MAX_SIZE = 4096
MAX_STEP = 1000
SIZE_MULTIPLE = SPATIAL_FACTOR * PATCH


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
            _require(0 <= self.seed < 1 << 64, "seed", f"{figure(self.seed)} is outside 0..2^64-1")
        for name, pixels in (("height", self.height), ("width", self.width)):
            if pixels is not None:
                _require(
                    SIZE_MULTIPLE <= pixels <= MAX_SIZE and pixels % SIZE_MULTIPLE == 0,
                    name,
                    f"{figure(pixels)} is no multiple of {SIZE_MULTIPLE} in {SIZE_MULTIPLE}..{MAX_SIZE}",
                )
        _require(self.model is None or self.model.strip() != "", "model", "the name of the model is empty")
        if self.steps is not None:
            _check_steps(self.steps)


def unserved(settings: Settings) -> list[str]:
    """A sentence for each of `settings` that no server takes from a timeline."""
    if settings.steps is None:
        return []
    steps = ", ".join(map(str, settings.steps))
    return [f"steps: a server takes the steps of its model, and not the timeline's, {steps}"]


def _check_steps(steps: Sequence[int]) -> None:
    _require(len(steps) > 0, "steps", "the list is empty; at least one denoising step is needed")
    for step in steps:
        _require(1 <= step <= MAX_STEP, "steps", f"step {figure(step)} is outside 1..{MAX_STEP}")
    for before, after in pairwise(steps):
        _require(before > after, "steps", f"step {after} follows {before}; steps must descend")


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
                f"{figure(self.frames)} is outside 1..{MAX_FRAMES}, which are 24 hours",
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
