"""Pictures of what `benchmarks.fidelity` found: a plot of its numbers, and sheets of frames with their prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from torch import Tensor

from benchmarks.judging import adherence, drift, prompt_switch, seeds
from engines.pocket.world.scene import ATTRIBUTES
from serving.media.contact_sheet import Still, write_sheet
from serving.media.whole_file import whole_file

MARKS = {"subject": 0.90, "color": 0.85, "motion": 0.75, "setting": 0.90, "light": 0.90, "weather": 0.90}
"""What the pocket model is to reach on fresh prompts."""

CHANGED_MARK, KEPT_MARK = 0.85, 0.90
"""And at a switch: of changed attributes right within three blocks, of unchanged ones kept."""

PROMPT_STILLS = 32
SWITCH_ROWS = 8
SWITCH_STILLS = (0, 1, 3, -1)
"""Before the switch, and after one block, three, and all."""

DRIFT_ROWS = 6
DRIFT_STILLS = 4
"""Pictures of a stream: as many as a sheet has columns."""

LEGEND = {"fontsize": 7, "loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 3}
"""Below the axes: the bars are high."""

ZOOM = 2
"""Leaves room for whole prompts below the pictures."""


@dataclass(frozen=True)
class Sheet:
    """Pictures with what they should show."""

    stills: Sequence[Still]

    def write(self, file: Path) -> None:
        """As a PNG."""
        write_sheet(file, [still._replace(picture=_enlarged(still.picture)) for still in self.stills])


def _enlarged(picture: Tensor) -> Tensor:
    return picture.repeat_interleave(ZOOM, dim=0).repeat_interleave(ZOOM, dim=1)


def prompt_sheet(trials: Sequence[adherence.Trial]) -> Sheet:
    """The last picture of the first streams, with what was read wrongly before the prompt."""
    return Sheet([
        Still(trial.frame, _told(trial.verdict.wrong(trial.role.cue.scene), trial.role.cue.text), trial.picture)
        for trial in trials[:PROMPT_STILLS]
    ])  # fmt: skip


def seed_sheet(pairs: Sequence[seeds.Pair]) -> Sheet:
    """Pairs beside each other: the last pictures of a prompt's two streams."""
    shown = pairs[: PROMPT_STILLS // 2]
    return Sheet([Still(pair.frame, pair.cue.text, picture) for pair in shown for picture in pair.pictures])


def switch_sheet(trials: Sequence[prompt_switch.Trial]) -> Sheet:
    """A row per switch, made with recache: the last picture before it, and the ends of blocks after it."""
    stills = []
    for trial in trials[:SWITCH_ROWS]:
        turn, after = trial.turn, trial.recached
        before = _told(trial.before.wrong(turn.before.scene), turn.before.text)
        told = _told(after.settled.wrong(turn.after.scene), turn.after.text)
        for index in SWITCH_STILLS:
            still = after.stills[index]
            stills.append(Still(still.frame, before if index == 0 else told, still.picture))
    return Sheet(stills)


def drift_sheet(sightings: Sequence[drift.Sighting]) -> Sheet:
    """A row per stream, from its beginning to its end."""
    stills = []
    for seed in list(dict.fromkeys(sighting.cue.seed for sighting in sightings))[:DRIFT_ROWS]:
        mine = [sighting for sighting in sightings if sighting.cue.seed == seed]
        for index in np.linspace(0, len(mine) - 1, DRIFT_STILLS).round().astype(int):
            seen = mine[index]
            stills.append(
                Still(seen.frame, _told(seen.verdict.wrong(seen.cue.scene), seen.cue.text), seen.picture)
            )
    return Sheet(stills)


def _told(wrong: Mapping[str, str], text: str) -> str:
    """The prompt, after the values that the judge sees instead of it."""
    return f"[{', '.join(wrong.values())}] {text}" if wrong else text


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Draw the parts that there are."""
    mpl.use("Agg")
    figure, ((prompts, switches), (adherence_, look)) = plt.subplots(2, 2, figsize=(14, 10), layout="constrained")
    parts = document["parts"]
    if "prompts" in parts:
        _draw_prompts(prompts, parts["prompts"]["adherence"], document["judge"]["accuracy"]["clean"])
    if "switches" in parts:
        _draw_switches(switches, parts["switches"])
    if "drift" in parts:
        _draw_drift(adherence_, look, parts["drift"]["minutes"])
    figure.suptitle(f"{document['model']}: what the judge sees")
    with whole_file(file) as place:
        figure.savefig(place, dpi=100)
    plt.close(figure)


def _bars(axes: Any, places: Any, shares: Sequence[Mapping[str, Any]], width: float, label: str) -> None:
    """Shares with their intervals; none where there was no trial."""
    values = np.array([np.nan if share["share"] is None else share["share"] for share in shares])
    below = np.clip(values - [share["low"] for share in shares], 0, None)
    above = np.clip([share["high"] for share in shares] - values, 0, None)
    axes.bar(places, values, width, yerr=np.stack([below, above]), capsize=2, label=label)


def _draw_prompts(axes: Any, groups: Mapping[str, Any], judge: Mapping[str, Any]) -> None:
    places, width = np.arange(len(ATTRIBUTES)), 0.8 / len(groups)
    for number, (group, shares) in enumerate(groups.items()):
        _bars(axes, places + (number - 2) * width, list(shares.values()), width, group.replace("_", " "))
    axes.hlines(list(MARKS.values()), places - 0.45, places + 0.45, color="black", label="mark")
    accuracy = [judge[name]["share"] for name in ATTRIBUTES]
    axes.plot(places, accuracy, "k*", label="judge on rendered clips")
    axes.set(title="fresh prompts", ylim=(0, 1.02), xticks=places, ylabel="share right")
    axes.set_xticklabels(list(ATTRIBUTES))
    axes.legend(**LEGEND)


def _draw_switches(axes: Any, switches: Mapping[str, Any]) -> None:
    kinds = list(switches["recache"])
    places, width = np.arange(len(kinds)), 0.2
    for number, name in enumerate(("recache", "no_recache")):
        for offset, what in ((0, "changed_right_within_3_blocks"), (2, "unchanged_kept")):
            shares = [switches[name][kind][what] for kind in kinds]
            label = f"{what.partition('_')[0]}, {name.replace('_', ' ')}"
            _bars(axes, places + (offset + number - 1.5) * width, shares, width, label)
    axes.hlines([CHANGED_MARK] * len(kinds), places - 0.4, places, color="black", label="mark")
    axes.hlines([KEPT_MARK] * len(kinds), places, places + 0.4, color="black")
    axes.set(
        title="switches: changed right within 3 blocks, unchanged kept",
        ylim=(0, 1.02),
        xticks=places,
        ylabel="share",
    )
    axes.set_xticklabels([f"{kind} ({switches['recache'][kind]['switches']})" for kind in kinds])
    axes.legend(**LEGEND)


def _draw_drift(adherence_: Any, look: Any, minutes: Sequence[Mapping[str, Any]]) -> None:
    numbers = [minute["minute"] + 1 for minute in minutes]
    for name in ATTRIBUTES:
        adherence_.plot(numbers, [minute["adherence"][name]["share"] for minute in minutes], ".-", label=name)
    mean = [minute["mean_adherence"] for minute in minutes]
    adherence_.plot(numbers, mean, "k", linewidth=2, label="mean")
    adherence_.set(title="drift, by minute", ylim=(0, 1.02), xticks=numbers, ylabel="share right")
    adherence_.legend(**LEGEND)
    for quantity in ("sharpness", "motion"):
        ratios = [minute[f"{quantity}_by_rendered"] for minute in minutes]
        look.plot(numbers, [ratio["ratio"] for ratio in ratios], ".-", label=quantity)
        if all(ratio["low"] is not None for ratio in ratios):
            look.fill_between(numbers, [r["low"] for r in ratios], [r["high"] for r in ratios], alpha=0.2)
    look.axhline(1, color="black", linewidth=0.5)
    look.set(title="drift beside rendered clips, by minute", xticks=numbers, ylabel="ratio")
    look.set_ylim(0, max(1.2, look.get_ylim()[1]))
    look.legend(**LEGEND)
