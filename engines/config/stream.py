"""How one stream is generated."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from typing_extensions import override

from engines.config.base_stream import BaseStreamConfig
from engines.config.geometry import BlockLengths
from engines.config.validation import require, require_positive


@dataclass(frozen=True)
class StreamConfig(BaseStreamConfig):
    """How one stream is generated. Lengths are latent frames, sizes are pixels.

    `window_frames` counts the sink, the recent past and the block itself. `first_block_frames` is the length of
    the first block, where it differs. `sink` says what a prompt switch does to the frame sink once the window is
    full: "global" keeps it as it was, "local" rewrites it with the oldest frames of the window. `rope` "relative"
    is endless; "absolute" is LongLive's published setting and ends with its table of positions.

    `steps` are the denoising steps on the scale 1000 (noise) to 1, `first_steps` those of the first block, where
    they differ. `levels` says what noise a step stands for, by a table that the flow `shift` warps: "warped" its
    own entry, "nearest" that entry whose timestep is nearest. Where blocks begin at another `start_level` than 1,
    that is step 1000's, and their noise is scaled by it.

    `context` says which pass leaves a block's keys and values for later blocks: "clean" one of its own; "noisy"
    the last denoising step, but for the first block; "steps" every denoising step, in a window of its own, which
    only the same step of later blocks sees.
    """

    block_frames: int = 3
    window_frames: int = 12
    sink_frames: int = 3
    sink: Literal["global", "local"] = "global"
    rope: Literal["relative", "absolute"] = "relative"
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    first_block_frames: int | None = None
    first_steps: tuple[int, ...] | None = None
    levels: Literal["warped", "nearest"] = "warped"
    start_level: float = 1.0
    context: Literal["clean", "noisy", "steps"] = "clean"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_window()
        self._check_steps("steps", self.steps)
        if self.first_steps is not None:
            self._check_steps("first_steps", self.first_steps)
        self._check_levels()

    def _check_window(self) -> None:
        blocks = self.blocks
        require_positive(
            block_frames=blocks.later, first_block_frames=blocks.first, window_frames=self.window_frames
        )
        require(self.sink_frames >= 0, f"sink_frames is {self.sink_frames}; it must be at least 0")
        require(
            self.sink_frames + blocks.later <= self.window_frames,
            f"sink_frames {self.sink_frames} leaves no room for a block of {blocks.later} "
            f"in window_frames {self.window_frames}",
        )
        require(
            blocks.first <= self.window_frames,
            f"a first block of {blocks.first} does not fit window_frames {self.window_frames}",
        )
        require(self.sink in ("global", "local"), f"sink {self.sink!r} is neither 'global' nor 'local'")
        require(self.rope in ("relative", "absolute"), f"rope {self.rope!r} is neither 'relative' nor 'absolute'")

    def _check_steps(self, name: str, steps: tuple[int, ...]) -> None:
        require(len(steps) >= 1, f"{name} is empty; at least one denoising step is needed")
        require(all(1 <= step <= 1000 for step in steps), f"{name} {steps} are not all within 1..1000")
        require(all(a > b for a, b in pairwise(steps)), f"{name} {steps} are not descending")

    def _check_levels(self) -> None:
        require(self.shift > 0, f"shift {self.shift} is not positive")
        require(self.levels in ("warped", "nearest"), f"levels {self.levels!r} is neither 'warped' nor 'nearest'")
        require(0 < self.start_level <= 1, f"start_level {self.start_level} is outside 0..1")
        contexts = ("clean", "noisy", "steps")
        require(self.context in contexts, f"context {self.context!r} is none of {', '.join(contexts)}")
        require(
            self.context != "steps" or self.first_steps is None,
            f"context 'steps' has a window for each of the steps {self.steps}; a first block cannot have others",
        )

    @property
    @override
    def blocks(self) -> BlockLengths:
        first = self.block_frames if self.first_block_frames is None else self.first_block_frames
        return BlockLengths(self.block_frames, first)

    @override
    def steps_of(self, block: int) -> tuple[int, ...]:
        return self.first_steps if block == 0 and self.first_steps is not None else self.steps

    @property
    def lanes(self) -> int:
        """Windows of the stream: one for all passes, or one for each step."""
        return len(self.steps) if self.context == "steps" else 1

    @property
    def passes(self) -> int:
        """Of a later block: its denoising steps, and its clean pass if it has one."""
        return len(self.steps) + (self.context == "clean")
