"""Drift: what the judge sees in long streams, minute by minute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.judging.casting import drift_cue
from benchmarks.judging.footage import Cue, Source, as_floats, rendered_pictures
from benchmarks.judging.frame_statistics import Look, looks
from benchmarks.judging.judge import CLIP_FRAMES, TrainedJudge, Verdict
from benchmarks.measure.intervals import Ratio, Share
from engines.config.geometry import FRAMES_PER_SECOND
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import ATTRIBUTES, Clip

MINUTE = 60 * FRAMES_PER_SECOND

CLIPS_PER_MINUTE = 8


@dataclass(frozen=True)
class Sighting:
    """One clip of one long stream, from `frame` on, with the look of the rendered clip and its last picture."""

    cue: Cue
    frame: int
    verdict: Verdict
    rendered: Look
    picture: Tensor

    @property
    def minute(self) -> int:
        """Counted from 0."""
        return self.frame // MINUTE


def measure(
    source: Source,
    judge: TrainedJudge,
    world: Renderer,
    *,
    streams: int,
    minutes: float,
    together: int,
    report: Callable[[int, int], None],
) -> list[Sighting]:
    """Run streams for so many minutes. `report` hears how many streams are done, and the frame of the others."""
    sightings: list[Sighting] = []
    for first in range(0, streams, together):
        cues = [drift_cue(number) for number in range(first, min(first + together, streams))]
        sightings += _run(source, judge, world, cues, round(minutes * MINUTE), partial(report, first))
    return sightings


def _run(
    source: Source,
    judge: TrainedJudge,
    world: Renderer,
    cues: Sequence[Cue],
    frames: int,
    report: Callable[[int], None],
) -> list[Sighting]:
    take, sightings, due = source.start(cues), list[Sighting](), 0
    recent = take.next_block()
    clips = [Clip(cue.scene, cue.seed) for cue in cues]
    while take.next_frame < frames:
        recent = torch.cat([recent, take.next_block()], dim=1)[:, -CLIP_FRAMES:]
        begin = take.next_frame - recent.shape[1]
        if recent.shape[1] == CLIP_FRAMES and begin >= due:
            due += MINUTE // CLIPS_PER_MINUTE
            verdicts = judge.judge(as_floats(recent))
            rendered = looks(rendered_pictures(world, clips, [begin] * len(clips)))
            rows = zip(cues, verdicts, rendered, recent, strict=True)
            sightings += [Sighting(cue, begin, seen, look, last[-1].cpu()) for cue, seen, look, last in rows]
            report(begin)
    take.close()
    return sightings


@dataclass(frozen=True)
class Minute:
    """All streams in one minute. Clips of one stream go right or wrong together: a stream is one trial."""

    number: int
    shares: dict[str, Share]
    sharpness: Ratio
    motion: Ratio
    collapsed: Share

    @property
    def adherence(self) -> float:
        """The mean over the six attributes."""
        return float(np.mean([share.value for share in self.shares.values()]))

    def as_json(self) -> dict[str, object]:
        """All of it."""
        return {
            "minute": self.number,
            "mean_adherence": round(self.adherence, 4),
            "adherence": {name: share.as_json() for name, share in self.shares.items()},
            "sharpness_by_rendered": self.sharpness.as_json(),
            "motion_by_rendered": self.motion.as_json(),
            "collapsed": self.collapsed.as_json(),
        }


def by_minute(sightings: Sequence[Sighting]) -> list[Minute]:
    """In order."""
    return [
        _minute(number, [sighting for sighting in sightings if sighting.minute == number])
        for number in sorted({sighting.minute for sighting in sightings})
    ]


def _minute(number: int, sightings: Sequence[Sighting]) -> Minute:
    streams: dict[int, list[Sighting]] = {}
    for sighting in sightings:
        streams.setdefault(sighting.cue.seed, []).append(sighting)

    def share(holds: Callable[[Sighting], bool]) -> Share:
        return Share.of(float(np.mean([holds(clip) for clip in clips])) for clips in streams.values())

    def ratio(quantity: Callable[[Look], float]) -> Ratio:
        return Ratio.of(
            [float(np.mean([quantity(clip.verdict.look) for clip in clips])) for clips in streams.values()],
            [float(np.mean([quantity(clip.rendered) for clip in clips])) for clips in streams.values()],
        )

    return Minute(
        number,
        {name: share(lambda clip, name=name: clip.verdict.shows(clip.cue.scene, name)) for name in ATTRIBUTES},  # type: ignore[misc]
        ratio(lambda look: look.sharpness),
        ratio(lambda look: look.motion),
        share(lambda clip: clip.verdict.collapse is not None),
    )


def as_json(sightings: Sequence[Sighting]) -> dict[str, object]:
    """Minute by minute, and the change of the mean adherence from the first one to the last, in points."""
    minutes = by_minute(sightings)
    return {
        "streams": len({sighting.cue.seed for sighting in sightings}),
        "last_minute_against_first_points": round(100 * (minutes[-1].adherence - minutes[0].adherence), 2),
        "minutes": [minute.as_json() for minute in minutes],
    }
