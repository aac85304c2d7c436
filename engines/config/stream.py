"""How one stream is generated."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from engines.config.geometry import PATCH, SPATIAL_FACTOR, BlockLengths
from engines.config.validation import require, require_positive


@dataclass(frozen=True)
class StreamConfig:
    """How one stream is generated. Lengths are latent frames, sizes are pixels.

    `window_frames` counts the sink, the recent past and the block itself. `first_block_frames` is the length of
    the first block, where it differs. `sink` says what a prompt switch does to the frame sink once the window is
    full: "global" keeps it as it was, "local" rewrites it with the oldest frames of the window. `rope` "relative"
    is endless; "absolute" is LongLive's published setting and ends with its table of positions. `steps` are the
    denoising steps on the scale 1000 (noise) to 1, before the flow `shift` warps them.
    """

    seed: int = 0
    height: int = 480
    width: int = 832
    block_frames: int = 3
    window_frames: int = 12
    sink_frames: int = 3
    sink: Literal["global", "local"] = "global"
    rope: Literal["relative", "absolute"] = "relative"
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    first_block_frames: int | None = None

    def __post_init__(self) -> None:
        require(0 <= self.seed < 1 << 64, f"seed {self.seed} is outside 0..2^64-1")
        self._check_size()
        self._check_window()
        self._check_steps()

    def _check_size(self) -> None:
        multiple = SPATIAL_FACTOR * PATCH
        for name, pixels in (("height", self.height), ("width", self.width)):
            require(
                pixels >= multiple and pixels % multiple == 0,
                f"{name} {pixels} is not a positive multiple of {multiple}, the pixels of a token",
            )

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

    def _check_steps(self) -> None:
        require(len(self.steps) >= 1, "steps is empty; at least one denoising step is needed")
        require(all(1 <= step <= 1000 for step in self.steps), f"steps {self.steps} are not all within 1..1000")
        require(all(a > b for a, b in pairwise(self.steps)), f"steps {self.steps} are not descending")
        require(self.shift > 0, f"shift {self.shift} is not positive")

    @property
    def blocks(self) -> BlockLengths:
        """Latent frames of the stream's blocks."""
        first = self.block_frames if self.first_block_frames is None else self.first_block_frames
        return BlockLengths(self.block_frames, first)

    @property
    def rows(self) -> int:
        """Tokens along the height of a latent frame."""
        return self.height // (SPATIAL_FACTOR * PATCH)

    @property
    def columns(self) -> int:
        """Tokens along the width of a latent frame."""
        return self.width // (SPATIAL_FACTOR * PATCH)

    @property
    def frame_tokens(self) -> int:
        """Tokens of a latent frame."""
        return self.rows * self.columns

    def latent_shape(self, channels: int, frames: int) -> tuple[int, int, int, int]:
        """Of latents: frames, channels, height, width."""
        return frames, channels, self.height // SPATIAL_FACTOR, self.width // SPATIAL_FACTOR
