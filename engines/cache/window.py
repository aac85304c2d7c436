"""Window policies: in which slot of its run each latent frame lies, where it is in time, and what a pass may
write.

A slot is one latent frame. Pool, kernels and graphs know slots and positions only as integers; which ones they are
is a model's own rule, a pure function of frame numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from engines.config.stream import StreamConfig

NOT_WRITTEN = -1
"""In `Placement.slots`: a frame whose keys and values the pass leaves as they are."""


class FixedSlot(NamedTuple):
    """A slot at a fixed place of the window, and the RoPE position that the place has now."""

    slot: int
    position: int


@dataclass(frozen=True)
class Placement:
    """What one pass over a stream's frames addresses.

    Args:
        slots: where each frame's keys and values are written, or NOT_WRITTEN: one tuple for all layers, or one for
            each layer.
        positions: RoPE position of each frame.
        used: the pass attends the slots `first` .. `used - 1`, its own frames among them.
        first: first slot attended.
        fixed: slots at fixed places of the window that the pass does not write itself.

    """

    slots: tuple[tuple[int, ...], ...]
    positions: tuple[int, ...]
    used: int
    first: int = 0
    fixed: tuple[FixedSlot, ...] = ()

    @property
    def frames(self) -> int:
        """Latent frames of the pass."""
        return len(self.positions)


class WindowSize(Protocol):
    """What a window takes of the pools."""

    @property
    def frames(self) -> int:
        """Slots of a run."""

    @property
    def raw_frames(self) -> int:
        """Slots from the run's first on whose keys are also kept as they were before RoPE."""

    @property
    def mean_frames(self) -> int:
        """Slots from the run's first on whose mean keys and values are kept."""

    @property
    def records(self) -> int:
        """Records of the queue from which slots are chosen on the device."""


class WindowPolicy(WindowSize, Protocol):
    """A model's rule for slots, positions and writes, where all of them are known before a pass."""

    def place(self, first_frame: int, frames: int, *, repeat: bool) -> Placement:
        """Of a pass over the stream's newest frames; `repeat` for every pass but the first over them."""

    def place_recache(self, next_frame: int) -> Placement:
        """Of the pass that recomputes the window before `next_frame`; it takes the last frames before that."""

    def keeps_first_write(self, first_frame: int, frames: int) -> bool:
        """Whether a repeat leaves some of these frames as the first pass wrote them, for good."""

    def is_permanent(self, next_frame: int) -> bool:
        """Whether a recache before `next_frame` leaves the sink as it is."""


@dataclass(frozen=True)
class SinkWindow:
    """LongLive's window of `frames`: a frame sink of `sink` frames, and behind it a ring of the most recent ones.

        slot      0 .. sink-1       sink .. frames-1
        holds     the frame sink    the ring
        frame g   slot g            slot sink + (g - sink) % (frames - sink)

    A new frame overwrites the slot that it evicts; nothing is moved (longlive.md, sections 2 and 3). With
    `keep_sink` a recache leaves the sink alone once the window has rolled; without, the oldest frames of the
    window go there. With `moving_sink` (relative RoPE) the sink's frames stay in front of the window: sink frame j
    is at the position of the window's first slot plus j. Without, all stay where they were in the stream.
    """

    frames: int
    sink: int
    keep_sink: bool = True
    moving_sink: bool = True

    @property
    def raw_frames(self) -> int:
        """The sink, if it moves."""
        return self.sink if self.moving_sink else 0

    @property
    def mean_frames(self) -> int:
        """No frame is compared with another."""
        return 0

    @property
    def records(self) -> int:
        """Slots are known by the frames' numbers."""
        return 0

    def slot(self, frame: int) -> int:
        """The slot in which `frame` of the stream lies, or will."""
        if frame < self.sink:
            return frame
        return self.sink + (frame - self.sink) % (self.frames - self.sink)

    def place(self, first_frame: int, frames: int, *, repeat: bool) -> Placement:
        """LongLive never rewrites a frame of the sink on a repeat, except at the very start of a stream."""
        end = first_frame + frames
        numbers = range(first_frame, end)
        spared = self.sink if repeat and first_frame > 0 else 0
        slots = tuple(NOT_WRITTEN if frame < spared else self.slot(frame) for frame in numbers)
        return Placement((slots,), tuple(numbers), min(end, self.frames), fixed=self._fixed(end))

    def place_recache(self, next_frame: int) -> Placement:
        """Until the window has rolled a recache rewrites everything, the sink too.

        Afterwards, with `keep_sink`, the sink's frames need not be computed (the 9-frame form).
        """
        if next_frame <= self.frames:
            numbers = tuple(range(next_frame))
            return Placement((numbers,), numbers, next_frame)
        ring = range(next_frame - (self.frames - self.sink), next_frame)
        slots, used = tuple(self.slot(frame) for frame in ring), self.frames
        if self.keep_sink:
            return Placement((slots,), tuple(ring), used, fixed=self._fixed(next_frame))
        window = range(next_frame - self.frames, next_frame)
        return Placement(((*range(self.sink), *slots),), tuple(window), used)

    def keeps_first_write(self, first_frame: int, frames: int) -> bool:
        """Frames of the sink behind the first block."""
        return 0 < first_frame < self.sink

    def is_permanent(self, next_frame: int) -> bool:
        """Once the window has rolled."""
        return self.keep_sink and next_frame > self.frames

    def _fixed(self, end: int) -> tuple[FixedSlot, ...]:
        """The sink's slots in a window that ends before frame `end`, where they differ from the stream's."""
        if not self.moving_sink or end <= self.frames:
            return ()
        return tuple(FixedSlot(slot, end - self.frames + slot) for slot in range(self.sink))


def window_policy(config: StreamConfig) -> WindowPolicy:
    """How LongLive and its kin keep a stream's frames."""
    return SinkWindow(
        config.window_frames,
        config.sink_frames,
        keep_sink=config.sink == "global",
        moving_sink=config.rope == "relative",
    )
