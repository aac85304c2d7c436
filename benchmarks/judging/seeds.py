"""What a seed decides: how far apart the subjects of two streams of one prompt are, beside two rendered clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.judging.casting import prompt_role
from benchmarks.judging.footage import Cue, RenderedSource, Source, as_floats
from benchmarks.judging.judge import CLIP_FRAMES, first_read, sampled
from benchmarks.judging.placement import Outline, outline, shift
from benchmarks.measure.intervals import Share
from engines.config.stream import StreamConfig
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import Clip

OTHER_SEED = 100_000_000
"""Of a prompt's second stream, from its first."""

APART = 0.01
"""Share of the width from which on two subjects are not in the same place: the measure's own error."""


@dataclass(frozen=True)
class Pair:
    """Two streams of one prompt: how far apart their subjects are on average, as a share of the width.

    `rendered` is the same of the two clips that the world makes of these seeds. The pictures are the last ones,
    uint8.
    """

    cue: Cue
    frame: int
    apart: float
    rendered: float
    pictures: tuple[Tensor, Tensor]


def measure(
    source: Source, world: Renderer, *, prompts: int, blocks: int, report: Callable[[int], None]
) -> list[Pair]:
    """Run two streams of `blocks` for each prompt. `report` hears how many prompts are done.

    Raises ValueError if `blocks` are too few to be read.
    """
    pairs: list[Pair] = []
    rendered = RenderedSource(world, StreamConfig())
    for number in range(prompts):
        cue = prompt_role(number).cue
        cues = cue, replace(cue, seed=cue.seed + OTHER_SEED)
        made, true = ([_footage(each, one, blocks) for one in cues] for each in (source, rendered))
        first_frame = first_read(blocks, len(made[0]))
        place = outline(world, [Clip(cue.scene, cue.seed)], first_frame, CLIP_FRAMES)
        apart, wanted = (_apart(pictures, place) for pictures in (made, true))
        pairs.append(Pair(cue, len(made[0]) - 1, apart, wanted, (made[0][-1].cpu(), made[1][-1].cpu())))
        report(len(pairs))
    return pairs


def as_json(pairs: Sequence[Pair]) -> dict[str, object]:
    """Mean distances as shares of the width, and how many pairs are apart at all."""
    apart, rendered = (
        torch.tensor(values) for values in zip(*((p.apart, p.rendered) for p in pairs), strict=True)
    )
    return {
        "apart": round(float(apart.mean()), 4),
        "apart_rendered": round(float(rendered.mean()), 4),
        "pairs_apart": Share.of(bool(value > APART) for value in apart).as_json(),
        "pairs_apart_rendered": Share.of(bool(value > APART) for value in rendered).as_json(),
    }


def _footage(source: Source, cue: Cue, blocks: int) -> Tensor:
    """[frames, height, width, 3] uint8 of a stream."""
    take = source.start([cue])
    pictures = torch.cat([take.next_block() for _ in range(blocks)], dim=1)[0]
    take.close()
    return pictures


def _apart(pictures: Sequence[Tensor], place: Outline) -> float:
    one, other = (
        shift(sampled(as_floats(clip[None, -CLIP_FRAMES:])), Outline(*(sampled(part) for part in place)))
        for clip in pictures
    )
    width = pictures[0].shape[2]
    return float((one - other).norm(dim=-1).mean() / width)
