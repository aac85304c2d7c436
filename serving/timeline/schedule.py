"""When the cues of a timeline apply, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from engines.config.geometry import FRAMES_PER_SECOND, BlockLengths
from serving.timeline.cue import Blend, Cue, Method, Restyling
from serving.timeline.timeline import Timeline


@dataclass(frozen=True)
class Step:
    """A prompt that comes into force with `block`, whose first pixel frame is `frame`.

    `asked_frame` is the frame of its cue. Where `source` is None, the prompt is `target`. Otherwise it is the
    `fraction` of the way, by `method`, from the prompt of step number `source` to `target`; at 1 it is `target`.
    The first step of a cue has its `restyling`.
    """

    block: int
    frame: int
    asked_frame: int
    target: Blend
    source: int | None = None
    fraction: float = 1.0
    method: Method = "linear"
    restyling: Restyling | None = None


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
            yield Step(block, frame, cue.frame, cue.blend, restyling=cue.restyling)
        else:
            fraction, method = number / cue.transition.blocks, cue.transition.method
            restyling = cue.restyling if number == 1 else None
            yield Step(block, frame, cue.frame, cue.blend, source, fraction, method, restyling)
