"""A timeline explained to the person who wrote it."""

from __future__ import annotations

from collections.abc import Iterable

from engines.config.geometry import FRAMES_PER_SECOND, BlockLengths
from serving.timeline.cue import Cue
from serving.timeline.formats.reader import ReadTimeline
from serving.timeline.lint import advice
from serving.timeline.schedule import LONGLIVE_BLOCKS, Schedule, Step, schedule
from serving.timeline.timecode import timecode
from serving.timeline.timeline import Settings, Timeline

PROMPT_CHARACTERS = 72


def explain(read: ReadTimeline, blocks: BlockLengths = LONGLIVE_BLOCKS) -> str:
    """What the file asks for, when its cues will apply, and what to know about both, as lines of text."""
    planned = schedule(read.timeline, blocks)
    lines = [
        f"format    {read.format}",
        f"length    {_length(read.timeline, planned)}",
        f"settings  {_settings(read.timeline.settings)}",
        f"cues      {len(read.timeline.cues)}",
    ]
    steps: dict[int, list[Step]] = {}
    for step in planned.steps:
        steps.setdefault(step.asked_frame, []).append(step)
    for cue in read.timeline.cues:
        lines += [f"  {line}" for line in _cue(cue, steps.get(cue.frame, []))]
    lines += _section("notes", read.notes)
    lines += _section("warnings", (*read.warnings, *planned.warnings))
    lines += _section("advice", advice(read.timeline))
    return "\n".join(lines)


def _length(timeline: Timeline, planned: Schedule) -> str:
    if timeline.frames is None or planned.frames is None:
        return "open"
    seconds = planned.frames / FRAMES_PER_SECOND
    return f"{timeline.frames} frames asked, {planned.frames} made: {planned.blocks} blocks, {seconds:.2f} s"


def _settings(settings: Settings) -> str:
    given = {
        "model": settings.model,
        "seed": settings.seed,
        "height": settings.height,
        "width": settings.width,
        "steps": None if settings.steps is None else "/".join(map(str, settings.steps)),
    }
    return ", ".join(f"{name} {value}" for name, value in given.items() if value is not None) or "none"


def _cue(cue: Cue, steps: list[Step]) -> list[str]:
    applied = f"applies at frame {steps[0].frame} ({timecode(steps[0].frame)})" if steps else "never applies"
    lines = [f"frame {cue.frame} ({timecode(cue.frame)}), {applied}"]
    if cue.transition is not None and steps:
        frames = ", ".join(str(step.frame) for step in steps[:8]) + (", ..." if len(steps) > 8 else "")
        lines.append(f"    in {cue.transition.blocks} blocks, {cue.transition.method}: frames {frames}")
    total = sum(weight for _, weight in cue.blend.parts)
    for text, weight in cue.blend.parts:
        share = f"{weight / total:4.0%} " if len(cue.blend.parts) > 1 else ""
        lines.append(f"    {share}{_shortened(text)}")
    return lines


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= PROMPT_CHARACTERS else f"{line[: PROMPT_CHARACTERS - 3]}..."


def _section(title: str, sentences: Iterable[str]) -> list[str]:
    lines = [f"  {sentence}" for sentence in sentences]
    return [title, *lines] if lines else []
