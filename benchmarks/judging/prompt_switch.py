"""Prompt switches: whether and when the picture follows, and whether the rest of it stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.judging.casting import SWITCH_KINDS, Turn, turn
from benchmarks.judging.footage import Source, Take, as_floats
from benchmarks.judging.frame_statistics import FLOOR
from benchmarks.judging.judge import CLIP_FRAMES, MOTION, STRIDE, TrainedJudge, Verdict, sampled
from benchmarks.measure.intervals import Ratio, Share
from engines.pocket.world.scene import ATTRIBUTES

BLOCKS_BEFORE = 5
"""The window is full and has rolled."""

BLOCKS_WITHIN = 3
"""In which a switch is to be made."""

STEADY = 0.9
"""The part of all later pictures that must be right for a change to have arrived."""


class Still(NamedTuple):
    """A picture [height, width, 3] uint8 that is kept, so many frames after the switch."""

    frame: int
    picture: Tensor


@dataclass(frozen=True)
class After:
    """What came of one switch.

    `arrivals` counts frames from the switch to the first picture from which on a changed attribute is right, or
    None where it never is. Motion can only be read from whole clips: its frame is that at which the first clip
    begins that shows it. `settled` is read from the clip that begins with the third block after the switch.
    `jump` is the difference between the last picture before and the first one after, in typical ones before.
    """

    settled: Verdict
    arrivals: dict[str, int | None]
    limit: int
    """Frames within which a change is in time."""
    jump: float
    stills: Sequence[Still]

    @property
    def in_time(self) -> dict[str, bool]:
        """Whether each changed attribute came within the limit."""
        return {name: frame is not None and frame < self.limit for name, frame in self.arrivals.items()}


@dataclass(frozen=True)
class Trial:
    """One switch from the same stream twice: with the KV recache, and without it."""

    turn: Turn
    before: Verdict
    recached: After
    not_recached: After

    def after(self, *, recache: bool) -> After:
        """What came of it."""
        return self.recached if recache else self.not_recached


def measure(
    source: Source, judge: TrainedJudge, *, switches: int, together: int, report: Callable[[int], None]
) -> list[Trial]:
    """Run streams into a switch, fork them there, and judge both. `report` hears how many are done."""
    trials: list[Trial] = []
    for first in range(0, switches, together):
        turns = [turn(number) for number in range(first, min(first + together, switches))]
        trials += _run(source, judge, turns)
        report(len(trials))
    return trials


def _run(source: Source, judge: TrainedJudge, turns: Sequence[Turn]) -> list[Trial]:
    take = source.start([turn.before for turn in turns])
    past = torch.cat([take.next_block() for _ in range(BLOCKS_BEFORE)], dim=1)[:, -CLIP_FRAMES:]
    fork = take.fork()
    before = judge.judge(as_floats(past))
    recached = _follow(take, judge, turns, past, recache=True)
    not_recached = _follow(fork, judge, turns, past, recache=False)
    return [Trial(*row) for row in zip(turns, before, recached, not_recached, strict=True)]


def _follow(take: Take, judge: TrainedJudge, turns: Sequence[Turn], past: Tensor, *, recache: bool) -> list[After]:
    """Switch, and judge what comes: a clip beyond the first two of the blocks in which it is to be made."""
    take.switch([turn.after for turn in turns], recache=recache)
    blocks = [take.next_block()]
    block = blocks[0].shape[1]
    starts = [number * block for number in range(BLOCKS_WITHIN)]
    while len(blocks) * block < starts[-1] + CLIP_FRAMES:
        blocks.append(take.next_block())
    take.close()
    pictures = torch.cat(blocks, dim=1)
    clips = [judge.judge(as_floats(pictures[:, start : start + CLIP_FRAMES])) for start in starts]
    seen = judge.network.read_pictures(sampled(as_floats(pictures)))
    jumps = _jumps(as_floats(past), as_floats(pictures[:, :1]))
    rows = zip(turns, zip(*clips, strict=True), seen, jumps, past, pictures, strict=True)
    return [
        After(
            verdicts[-1],
            _arrivals(turn, dict(zip(starts, verdicts, strict=True)), values),
            BLOCKS_WITHIN * block,
            jump,
            _stills(before, after, block),
        )
        for turn, verdicts, values, jump, before, after in rows
    ]


def _arrivals(
    turn: Turn, clips: Mapping[int, Verdict], seen: Mapping[str, Sequence[str]]
) -> dict[str, int | None]:
    """When each changed attribute came, from the verdicts on clips by their first frame, and single pictures."""
    scene, arrivals = turn.after.scene, dict[str, int | None]()
    last = list(clips.values())[-1]
    for name in turn.changed:
        if name == MOTION:
            frames, right = list(clips), [verdict.shows(scene, name) for verdict in clips.values()]
        else:
            right = [value == getattr(scene, name) for value in seen[name]]
            frames = list(range(0, len(right) * STRIDE, STRIDE))
        index = None if last.collapse else arrival(right)
        arrivals[name] = None if index is None else frames[index]
    return arrivals


def _stills(past: Tensor, pictures: Tensor, block: int) -> list[Still]:
    """The last picture before the switch, and the last one of every block after it."""
    frames = range(block - 1, len(pictures), block)
    return [Still(-1, past[-1].cpu()), *(Still(frame, pictures[frame].cpu()) for frame in frames)]


def arrival(right: Sequence[bool]) -> int | None:
    """The first reading that is right, and from which on nearly all are; None if there is none."""
    for index, now in enumerate(right):
        if now and np.mean(right[index:]) >= STEADY:
            return index
    return None


def _jumps(past: Tensor, first: Tensor) -> list[float]:
    """The change of the picture at the switch, in typical changes from frame to frame before it; one per clip."""
    usual = past.diff(dim=1).abs().mean(dim=(2, 3, 4)).median(dim=1).values
    jump = (first[:, 0] - past[:, -1]).abs().mean(dim=(1, 2, 3))
    return (jump.clamp(min=FLOOR) / usual.clamp(min=FLOOR)).tolist()


def changed(trials: Sequence[Trial], *, recache: bool) -> Share:
    """How often a changed attribute was right within three blocks."""
    return sum((Share.of(trial.after(recache=recache).in_time.values()) for trial in trials), Share(0, 0))


def kept(trials: Sequence[Trial], names: Sequence[str], *, recache: bool) -> Share:
    """How often an unchanged attribute, one of `names`, that was right before the switch is right after it."""
    return Share.of(
        trial.after(recache=recache).settled.shows(trial.turn.after.scene, name)
        for trial in trials for name in trial.turn.unchanged
        if name in names and trial.before.shows(trial.turn.before.scene, name)
    )  # fmt: skip


def as_json(trials: Sequence[Trial]) -> dict[str, object]:
    """With and without recache: over all switches, and by their kind."""
    by_kind = {kind: [trial for trial in trials if trial.turn.kind == kind] for kind in SWITCH_KINDS}
    return {
        name: {"all": _summary(trials, recache=recache)}
        | {kind: _summary(some, recache=recache) for kind, some in by_kind.items() if some}
        for name, recache in (("recache", True), ("no_recache", False))
    }


def _summary(trials: Sequence[Trial], *, recache: bool) -> dict[str, object]:
    after = [trial.after(recache=recache) for trial in trials]
    return {
        "switches": len(trials),
        "changed_right_within_3_blocks": changed(trials, recache=recache).as_json(),
        "unchanged_kept": kept(trials, tuple(ATTRIBUTES), recache=recache).as_json(),
        "changed": {name: _change([one for one in after if name in one.in_time], name) for name in ATTRIBUTES},
        "kept": {name: kept(trials, [name], recache=recache).as_json() for name in ATTRIBUTES},
        "jump_in_usual_frame_differences": Ratio.of([one.jump for one in after], [1.0] * len(after)).as_json(),
        "collapsed": sum(one.settled.collapse is not None for one in after),
    }


def _change(after: Sequence[After], name: str) -> dict[str, object]:
    """How one attribute followed, and in how many frames where it did."""
    frames = [frame for one in after if (frame := one.arrivals[name]) is not None]
    return {
        "right_within_3_blocks": Share.of(one.in_time[name] for one in after).as_json(),
        "arrived": Share.of(one.arrivals[name] is not None for one in after).as_json(),
        "median_frames": float(np.median(frames)) if frames else None,
        "p90_frames": float(np.quantile(frames, 0.9)) if frames else None,
    }
