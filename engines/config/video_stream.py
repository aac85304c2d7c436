"""How one stream that restyles a video is generated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal, get_args

from typing_extensions import override

from engines.config.base_stream import BaseStreamConfig
from engines.config.geometry import TEMPORAL_FACTOR, BlockLengths, pixel_frames
from engines.config.stream import StreamConfig
from engines.config.validation import require, require_positive

Loop = Literal["plain", "batch"]

LOOPS: tuple[Loop, ...] = get_args(Loop)

LoopSetting = Literal["auto", "plain", "batch"]
"""Which loop to use; "auto" is plain while there is time for it."""

MOST_WINDOW_FRAMES = 128
"""A queue of slots has room for two windows: see `kernels.slot_choice.slot_queue`."""


@dataclass(frozen=True)
class VideoStreamConfig(BaseStreamConfig):
    """How one stream of StreamDiffusionV2 is generated. Lengths are latent frames, sizes are pixels.

    `window_frames` counts the sink and the block itself. A frame of the sink is replaced when a new frame is less
    like it than `sink_threshold`; None for never. `steps` are the denoising steps on the scale 1000 (noise) to 0,
    each at the level of noise whose timestep is nearest, in a table that the flow `shift` warps.

    A block begins as the input mixed with noise, `noise_scale` of it; where `motion_noise` is on, the more moves
    the less. The first step follows: it runs at a thousand times that, less `timestep_below`, since the published
    model is told that its input is cleaner than it is.

    `loop` says how steps run: "plain" a block's one after the other, in one window; "batch" those of successive
    blocks as rows of one pass, each step in a window of its own, so that a block leaves len(steps) - 1 passes
    after it came. With `exact` a full window is written as the published code writes it, where the later steps of
    a plain block go into the slot that the next block overwrites; without, they stay in the block's own.

    Positions are absolute, and go back to the window's last where they reach `refresh_at`: keys that were written
    before keep theirs.
    """

    block_frames: int = 1
    first_block_frames: int = 2
    window_frames: int = 6
    sink_frames: int = 3
    sink_threshold: float | None = 0.2
    steps: tuple[int, ...] = (700, 500)
    shift: float = 8.0
    noise_scale: float = 0.8
    timestep_below: int = 100
    motion_noise: bool = True
    loop: Loop = "batch"
    exact: bool = True
    refresh_at: int = 50

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_window()
        self._check_steps()

    def _check_window(self) -> None:
        first, later, window = self.first_block_frames, self.block_frames, self.window_frames
        require_positive(block_frames=later, first_block_frames=first, window_frames=window)
        require(window <= MOST_WINDOW_FRAMES, f"window_frames {window} is more than {MOST_WINDOW_FRAMES}")
        require(later <= first, f"a first block of {first} is shorter than later ones of {later}")
        require(
            (window - first) % later == 0,
            f"window_frames {window} is not filled by a first block of {first} and blocks of {later}",
        )
        require(
            2 * first <= window,
            f"window_frames {window} leaves no slot to overwrite behind a first block of {first}; {2 * first} do",
        )
        require(
            0 <= self.sink_frames <= window - later,
            f"sink_frames {self.sink_frames} leaves no room for a block of {later} in window_frames {window}",
        )
        threshold = self.sink_threshold
        require(threshold is None or -1 <= threshold <= 1, f"sink_threshold {threshold} is outside -1..1")
        require(
            threshold is None or later == 1,
            f"sink_threshold compares single frames, and a block has {later}; leave it out",
        )
        require(self.refresh_at > window, f"refresh_at {self.refresh_at} is not beyond window_frames {window}")

    def _check_steps(self) -> None:
        steps = self.steps
        require(len(steps) >= 1, "steps is empty; at least one denoising step is needed")
        require(all(0 <= step <= 1000 for step in steps), f"steps {steps} are not all within 0..1000")
        require(all(a > b for a, b in pairwise(steps)), f"steps {steps} are not descending")
        require(self.shift > 0, f"shift {self.shift} is not positive")
        require(0 < self.noise_scale <= 1, f"noise_scale {self.noise_scale} is outside 0..1")
        require(0 <= self.timestep_below < 1000, f"timestep_below {self.timestep_below} is outside 0..999")
        require(self.loop in LOOPS, f"loop {self.loop!r} is none of {', '.join(LOOPS)}")

    @property
    @override
    def blocks(self) -> BlockLengths:
        return BlockLengths(self.block_frames, self.first_block_frames)

    @property
    def lead_in(self) -> int:
        """Pixel frames by which a stream's opening is longer than a later block, whose place it takes anew."""
        first, later = self.first_block_frames, self.block_frames
        return pixel_frames(first) - TEMPORAL_FACTOR * later

    @property
    def passes(self) -> int:
        """Of a block."""
        return len(self.steps)

    @override
    def steps_of(self, block: int) -> tuple[int, ...]:
        return self.steps


AnyStreamConfig = StreamConfig | VideoStreamConfig
"""Of a stream from prompts alone, or of one that restyles a video."""


@lru_cache(maxsize=256)
def as_run(config: AnyStreamConfig, loop: Loop) -> AnyStreamConfig:
    """A stream as it runs in a loop."""
    return replace(config, loop=loop) if isinstance(config, VideoStreamConfig) else config
