"""Timelines of Daydream Scope: the files it exported up to version 2.1, and its `.scope-workflow.json`.

Read as Scope did: fields that it ignores are ignored, segments without length are dropped, and what has no
meaning here is named in a warning: what is set of pictures too, unless some are restyled by it. Overlaps, gaps and
values that cannot be used are errors all the same.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise

from engines.config.geometry import FRAMES_PER_SECOND
from serving.errors import TimelineError
from serving.timeline.cue import Blend, Cue, Transition, within
from serving.timeline.formats.document import Json, Node, maybe, shown
from serving.timeline.formats.native import read_method, read_steps, read_weight
from serving.timeline.formats.scope_pictures import PictureFields, PictureSettings
from serving.timeline.schedule import frame_at
from serving.timeline.timeline import MAX_CUES, MAX_SECONDS, Settings, Timeline

TOLERANCE_S = 0.5 / FRAMES_PER_SECOND
"""Times of neighbouring segments that differ by less are the same time: Scope's clock writes noisy decimals."""

SCOPE_WEIGHT = 100.0
"""The weight of a prompt that Scope's editor leaves as it is."""


@dataclass(frozen=True)
class Dialect:
    """How one of the two formats calls the fields of a segment, and what it sets of pictures."""

    start: str
    end: str
    steps: str
    method: str
    pictures: PictureFields
    cosmetic: tuple[str, ...] = ("id", "text", "isLive", "color")


GENERATORS = ("longlive", "streamdiffusionv2", "krea-realtime-video", "reward-forcing", "memflow")
PROCESSORS = ("video-depth-anything", "scribble", "gray", "optical-flow", "rife", "controller-viz", "passthrough")
"""Scope's own pipelines: those that generate pictures, and those that stand before or behind one in a workflow."""

TIMELINE = Dialect(
    "startTime", "endTime", "transitionSteps", "temporalInterpolationMethod",
    PictureFields("noiseScale", "noiseController", "manageCache", "inputMode"),
)  # fmt: skip
WORKFLOW = Dialect(
    "start_time", "end_time", "transition_steps", "temporal_interpolation_method",
    PictureFields("noise_scale", "noise_controller", "manage_cache", "input_mode"),
)  # fmt: skip


@dataclass(frozen=True)
class Remarks:
    """What the reader of a file should know."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def ignored(self, place: str, fields: dict[str, Node], used: Collection[str]) -> None:
        """Warn of the fields that are not used."""
        names = [shown(name).strip("'") for name in fields if name not in used]
        if names:
            rest = (
                "has no meaning here and is ignored" if len(names) == 1 else "have no meaning here and are ignored"
            )
            self.warnings.append(f"{place}: {', '.join(names)} {rest}")

    def without_pictures(self, place: str, told: Collection[str]) -> None:
        """Warn of what a file sets of pictures, where there are none."""
        if told:
            self.warnings.append(f"{place}: {', '.join(told)}: only where pictures are restyled, and ignored here")

    def lora(self, node: Node) -> None:
        """Warn of a LoRA: a timeline says what is to be seen, and not which files are loaded."""
        named = _present(node)
        file = shown(named["filename"].value) if "filename" in named else "without a name"
        weight = f" with weight {shown(named['weight'].value)}" if "weight" in named else ""
        self.warnings.append(f"{node.place}: the LoRA {file}{weight} is not loaded; --lora FILE:WEIGHT does that")

    def pipeline(self, node: Node) -> None:
        """Note which pipeline a file was made for."""
        self.notes.append(
            f"{node.place} is {shown(node.value)}, which is only advice: the model is the one named by --model, "
            "or else the default model"
        )


@dataclass(frozen=True)
class Asked:
    """What a file sets beside its cues."""

    settings: Settings
    pictures: PictureSettings


NOTHING = Asked(Settings(), PictureSettings())


@dataclass(frozen=True)
class Segment:
    """A stretch of a Scope timeline, in seconds."""

    place: str
    start: float
    end: float
    blend: Blend
    transition: Transition | None


def read_scope_timeline(document: Node, remarks: Remarks, *, restyles: bool) -> Timeline:
    """The timeline in a file of version 2.0 or 2.1; `restyles` is whether pictures are to be restyled by it."""
    fields = _present(document)
    remarks.ignored("the file", fields, ("prompts", "settings", "version", "exportedAt"))
    version = fields.get("version")
    if version is not None and version.value not in ("2.0", "2.1"):
        remarks.warnings.append(f"version: {shown(version.value)} is unknown and read as '2.1'")
    asked = _timeline_settings(fields["settings"], remarks, restyles) if "settings" in fields else NOTHING
    if "prompts" not in fields:
        raise document.error("the field 'prompts' is missing; it lists the segments")
    return _timeline(fields["prompts"], TIMELINE, asked, remarks)


def read_scope_workflow(document: Node, remarks: Remarks, *, restyles: bool) -> Timeline:
    """The timeline in a workflow; without one, its prompt as the only cue of a clip of open length.

    `restyles` is as in `read_scope_timeline`.
    """
    fields = _present(document)
    version = fields.get("format_version")
    if version is not None and not (isinstance(version.value, str) and version.value.startswith("1.")):
        remarks.warnings.append(f"format_version: {shown(version.value)} is unknown and read as '1.0'")
    asked = _workflow_settings(fields["pipelines"].items() if "pipelines" in fields else [], remarks, restyles)
    entries = fields["timeline"].fields().get("entries") if "timeline" in fields else None
    read = "prompts" if entries is None else "timeline"
    known = ("format", "format_version", "metadata", "min_scope_version", "pipelines", read)
    remarks.ignored("the file", fields, known)
    if entries is not None:
        return _timeline(entries, WORKFLOW, asked, remarks)
    if "prompts" not in fields:
        raise document.error("it holds neither a timeline with entries nor prompts")
    remarks.notes.append(
        "the workflow has no timeline; its prompt is in force from frame 0, and the length is open"
    )
    cues = asked.pictures.said_by([Cue(0, _blend(document, fields, remarks))])
    return Timeline(cues, None, asked.settings)


def _timeline(entries: Node, dialect: Dialect, asked: Asked, remarks: Remarks) -> Timeline:
    segments = [_segment(node, dialect, remarks) for node in entries.items(MAX_CUES)]
    if not segments:
        raise entries.error("the list is empty; at least one segment is needed")
    _require_contiguous(segments)
    bounds = [frame_at(segment.start) for segment in segments] + [frame_at(segments[-1].end)]
    cues: list[Cue] = []
    for segment, (frame, end) in zip(segments, pairwise(bounds), strict=True):
        if frame >= end:
            remarks.warnings.append(f"{segment.place}: the segment is shorter than a frame and is dropped")
        elif frame == 0 and segment.transition is not None:
            remarks.warnings.append(
                f"{segment.place}: no prompt comes before the first one, so it has no transition"
            )
            cues.append(Cue(frame, segment.blend))
        else:
            cues.append(Cue(frame, segment.blend, segment.transition))
    if not cues:
        raise entries.error("no segment is as long as a frame")
    timeline = Timeline(asked.pictures.said_by(cues), bounds[-1], asked.settings)
    timeline.require_start()
    return timeline


def _segment(node: Node, dialect: Dialect, remarks: Remarks) -> Segment:
    fields = _present(node)
    used = (dialect.start, dialect.end, dialect.steps, dialect.method, "prompts", *dialect.cosmetic)
    remarks.ignored(node.place, fields, used)
    for name in (dialect.start, dialect.end):
        if name not in fields:
            raise node.error(f"the field {name!r} is missing")
    start, end = (fields[name].number(0, MAX_SECONDS) for name in (dialect.start, dialect.end))
    if end < start:
        raise fields[dialect.end].error(f"the segment ends at {end:g} s, before it begins at {start:g} s")
    return Segment(node.place, start, end, _blend(node, fields, remarks), _transition(fields, dialect))


def _require_contiguous(segments: list[Segment]) -> None:
    if segments[0].start > TOLERANCE_S:
        problem = f"the first segment begins at {segments[0].start:g} s; a prompt is needed at 0"
        raise TimelineError(segments[0].place, problem)
    for before, segment in pairwise(segments):
        there, here = f"{before.end:g} s, where {before.place} ends", f"it begins at {segment.start:g} s"
        if segment.start < before.end - TOLERANCE_S:
            kind = "out of order" if segment.start < before.start else "an overlap"
            raise TimelineError(segment.place, f"{here}, before {there}: {kind}")
        if segment.start > before.end + TOLERANCE_S:
            raise TimelineError(segment.place, f"{here}, after {there}: a gap")


def _transition(fields: dict[str, Node], dialect: Dialect) -> Transition | None:
    node = fields.get(dialect.steps)
    if node is None or node.whole() <= 0:
        return None
    method = maybe(fields.get(dialect.method), read_method)
    try:
        return Transition(node.whole(), method or "linear")
    except TimelineError as error:
        raise node.error(error.problem) from None


def _blend(node: Node, fields: dict[str, Node], remarks: Remarks) -> Blend:
    prompts = fields["prompts"].items() if "prompts" in fields else []
    parts = [_part(item) for item in prompts]
    if not parts:
        if "text" not in fields:
            raise node.error("neither prompts nor a text says what is to be seen")
        parts = [(fields["text"].text("prompt"), SCOPE_WEIGHT)]
    if node.place == "":
        return Blend(tuple(parts))
    with within(node.place):
        return Blend(tuple(parts))


def _part(node: Node) -> tuple[str, float]:
    fields = _present(node)
    if "text" not in fields:
        raise node.error("the field 'text' is missing")
    weight = maybe(fields.get("weight"), read_weight)
    return fields["text"].text("prompt"), SCOPE_WEIGHT if weight is None else weight


def _timeline_settings(node: Node, remarks: Remarks, restyles: bool) -> Asked:
    fields = _present(node)
    pipeline = fields["pipelineId"].value if "pipelineId" in fields else None
    told = TIMELINE.pictures.of(fields, pipeline)
    remarks.ignored(node.place, fields, ("pipelineId", "resolution", "seed", "denoisingSteps", *told))
    if "pipelineId" in fields:
        remarks.pipeline(fields["pipelineId"])
    size = _present(fields["resolution"]) if "resolution" in fields else {}
    return Asked(
        _settings(size.get("height"), size.get("width"), fields.get("seed"), fields.get("denoisingSteps")),
        _pictures(node, told, TIMELINE, remarks, restyles),
    )


def _pictures(
    node: Node, told: dict[str, Node], dialect: Dialect, remarks: Remarks, restyles: bool
) -> PictureSettings:
    if restyles:
        return PictureSettings.read(told, dialect.pictures)
    remarks.without_pictures(node.place, told)
    return PictureSettings()


def _workflow_settings(pipelines: list[Node], remarks: Remarks, restyles: bool) -> Asked:
    """What the workflow's main pipeline is set to; the others are named in warnings."""
    main = _main_pipeline(pipelines)
    for node in pipelines:
        if node is not main:
            name = shown(_pipeline_id(node)) if _pipeline_id(node) is not None else "without a name"
            remarks.warnings.append(f"{node.place}: the pipeline {name} has no counterpart here and is ignored")
    if main is None:
        return NOTHING
    fields = _present(main)
    remarks.ignored(main.place, fields, ("pipeline_id", "pipeline_version", "source", "role", "params", "loras"))
    for lora in fields["loras"].items() if "loras" in fields else ():
        remarks.lora(lora)
    if "pipeline_id" in fields:
        remarks.pipeline(fields["pipeline_id"])
    if "params" not in fields:
        return NOTHING
    return _workflow_params(fields["params"], _pipeline_id(main), remarks, restyles)


def _main_pipeline(pipelines: list[Node]) -> Node | None:
    """The one that generates. A workflow need not give roles, and may list what stands before it first."""

    def is_main(node: Node) -> bool:
        fields = _present(node)
        return "role" not in fields or fields["role"].value == "main"

    def rank(node: Node) -> int:
        name = _pipeline_id(node)
        if name in GENERATORS:
            return 0 if is_main(node) else 2
        return 3 if name in PROCESSORS else 1

    # A generator is one whatever its role is called.
    candidates = [node for node in pipelines if is_main(node) or _pipeline_id(node) in GENERATORS]
    return min(candidates, key=rank, default=None)


def _pipeline_id(node: Node) -> Json:
    fields = _present(node)
    return fields["pipeline_id"].value if "pipeline_id" in fields else None


def _workflow_params(node: Node, pipeline: Json, remarks: Remarks, restyles: bool) -> Asked:
    params = _present(node)
    # Fields that its settings page knows go by the names of the engine, the others by those of the schema.
    seed = next((name for name in ("base_seed", "seed") if name in params), "")
    steps = next((name for name in ("denoising_step_list", "denoising_steps") if name in params), "")
    told = WORKFLOW.pictures.of(params, pipeline)
    remarks.ignored(node.place, params, ("height", "width", seed, steps, *told))
    return Asked(
        _settings(params.get("height"), params.get("width"), params.get(seed), params.get(steps)),
        _pictures(node, told, WORKFLOW, remarks, restyles),
    )


def _settings(height: Node | None, width: Node | None, seed: Node | None, steps: Node | None) -> Settings:
    given = {"height": height, "width": width, "seed": seed, "steps": steps}
    try:
        return Settings(
            seed=maybe(seed, Node.whole),
            height=maybe(height, Node.whole),
            width=maybe(width, Node.whole),
            steps=maybe(steps, read_steps),
        )
    except TimelineError as error:
        node = given.get(error.place)
        raise error if node is None else node.error(error.problem) from None


def _present(node: Node) -> dict[str, Node]:
    """Fields that are not null."""
    return {name: inner for name, inner in node.fields().items() if inner.value is not None}
