"""Prompt adherence: streams of fresh prompts, and what the judge sees in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.judging.casting import Role, prompt_role
from benchmarks.judging.footage import Source, as_floats, rendered_pictures
from benchmarks.judging.frame_statistics import Look, looks
from benchmarks.judging.judge import TrainedJudge, Verdict, first_read
from benchmarks.judging.smoothness import Beside, beside, joined, smoothness
from benchmarks.measure.intervals import Ratio, Share
from engines.config.geometry import TEMPORAL_FACTOR
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import ATTRIBUTES, Clip, Weather

GROUPS_BESIDE = 4
"""Latent frames at a stream's end whose pictures are held beside rendered ones."""

Shares = dict[str, Share]
"""By attribute."""


@dataclass(frozen=True)
class Trial:
    """One prompt: the verdict on its stream, the look of the rendered clip, and the last picture, uint8.

    `beside` has the stream's last pictures beside the rendered clip's.
    """

    role: Role
    verdict: Verdict
    rendered: Look
    beside: Beside
    frame: int
    picture: Tensor


def measure(
    source: Source,
    judge: TrainedJudge,
    world: Renderer,
    *,
    prompts: int,
    blocks: int,
    together: int,
    report: Callable[[int], None],
) -> list[Trial]:
    """Run a stream of `blocks` for each prompt and judge its last frames. `report` hears how many are done.

    Raises ValueError if `blocks` are too few to be read.
    """
    trials: list[Trial] = []
    for first in range(0, prompts, together):
        roles = [prompt_role(number) for number in range(first, min(first + together, prompts))]
        trials += _run(source, judge, world, roles, blocks)
        report(len(trials))
    return trials


def _run(source: Source, judge: TrainedJudge, world: Renderer, roles: Sequence[Role], blocks: int) -> list[Trial]:
    take = source.start([role.cue for role in roles])
    pictures = torch.cat([take.next_block() for _ in range(blocks)], dim=1)
    take.close()
    begin = first_read(blocks, take.next_frame)
    verdicts = judge.judge(as_floats(pictures[:, begin:]))
    clips = [Clip(role.cue.scene, role.cue.seed) for role in roles]
    rendered = looks(rendered_pictures(world, clips, [begin] * len(clips)))
    last = 1 + TEMPORAL_FACTOR * GROUPS_BESIDE
    true = world.render(clips, [take.next_frame - last] * len(clips), last)
    compared = beside(as_floats(pictures[:, -last:]), true)
    return [
        Trial(
            role, verdict, look, Beside(*(values[i : i + 1] for values in compared)), take.next_frame - 1, picture
        )
        for i, (role, verdict, look, picture) in enumerate(
            zip(roles, verdicts, rendered, pictures[:, -1].cpu(), strict=True)
        )
    ]


GROUPS: dict[str, Callable[[Trial], bool]] = {
    "all": lambda trial: True,
    "trained_combinations": lambda trial: not trial.role.cue.scene.held_out,
    "held_out_combinations": lambda trial: trial.role.cue.scene.held_out,
    "trained_phrasings": lambda trial: trial.role.phrasings == "training",
    "held_out_phrasings": lambda trial: trial.role.phrasings == "held_out",
}


def shares(trials: Sequence[Trial]) -> Shares:
    """How often each attribute was as the prompt said."""
    return {
        name: Share.of(trial.verdict.shows(trial.role.cue.scene, name) for trial in trials) for name in ATTRIBUTES
    }


def as_json(trials: Sequence[Trial]) -> dict[str, object]:
    """Adherence by group and attribute, what was seen instead, and how the clips look beside rendered ones."""
    groups = {name: [trial for trial in trials if chosen(trial)] for name, chosen in GROUPS.items()}
    clear = [trial for trial in trials if trial.role.cue.scene.weather is Weather.CLEAR]
    return {
        "adherence": {
            group: {name: share.as_json() for name, share in shares(chosen).items()}
            for group, chosen in groups.items()
        },
        "all_six": Share.of(not trial.verdict.wrong(trial.role.cue.scene) for trial in trials).as_json(),
        "collapsed": dict(Counter(trial.verdict.collapse for trial in trials if trial.verdict.collapse)),
        "seen_instead": _seen_instead(trials),
        "sharpness_by_rendered": ratio(trials, "sharpness").as_json(),
        "motion_by_rendered": ratio(trials, "motion").as_json(),
        "motion_by_rendered_in_clear_weather": ratio(clear, "motion").as_json() if clear else None,
        "smoothness": smoothness(joined([trial.beside for trial in trials])),
    }


def ratio(trials: Sequence[Trial], quantity: str) -> Ratio:
    """A quantity of looks beside that of the same scenes rendered."""
    return Ratio.of(
        [trial.verdict.look._asdict()[quantity] for trial in trials],
        [trial.rendered._asdict()[quantity] for trial in trials],
    )


def _seen_instead(trials: Sequence[Trial]) -> dict[str, dict[str, int]]:
    """For each attribute how often one value was seen in place of another, most often first."""
    confused: dict[str, Counter[str]] = {name: Counter() for name in ATTRIBUTES}
    for trial in trials:
        if trial.verdict.collapse is None:
            for name, seen in trial.verdict.wrong(trial.role.cue.scene).items():
                confused[name][f"{getattr(trial.role.cue.scene, name)} as {seen}"] += 1
    return {name: dict(counter.most_common()) for name, counter in confused.items()}
