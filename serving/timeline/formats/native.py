"""Longtake's own timelines, read strictly and written.

`serving/timeline/timeline.schema.json` says the same for editors and other programs, and
`serving/timeline/example.yaml` is an example. Nothing is guessed: an unknown field, a cue
without a time or out of order, all are errors.
"""

from __future__ import annotations

from engines.config.geometry import FRAMES_PER_SECOND
from serving.timeline.cue import (
    LAST_FRAME,
    MAX_WEIGHT,
    METHODS,
    Blend,
    Cue,
    Method,
    Restyling,
    Transition,
    check_count,
    check_prompt,
    check_weight,
    within,
)
from serving.timeline.formats.document import Json, Node, maybe, shown
from serving.timeline.schedule import frame_at
from serving.timeline.timecode import frame_of
from serving.timeline.timeline import MAX_CUES, MAX_FRAMES, MAX_STEP, Settings, Timeline

FIELDS = ("$schema", "version", "model", "seed", "height", "width", "steps", "frames", "seconds", "length", "cues")
CUE_FIELDS = ("frame", "seconds", "at", "prompt", "prompts", "transition", "restyling")
RESTYLING_FIELDS = ("noise_scale", "follows_motion", "renews_sink", "cuts")
VERSION = 1


def read_own(document: Node) -> Timeline:
    """The timeline in a document of Longtake's own format."""
    fields = document.fields(FIELDS)
    version = fields.get("version")
    if version is not None and version.whole() != VERSION:
        raise version.error(f"version {shown(version.value)} is unknown; known: {VERSION}")
    maybe(fields.get("$schema"), Node.text)
    settings = Settings(
        seed=maybe(fields.get("seed"), Node.whole),
        height=maybe(fields.get("height"), Node.whole),
        width=maybe(fields.get("width"), Node.whole),
        model=maybe(fields.get("model"), Node.text),
        steps=maybe(fields.get("steps"), read_steps),
    )
    if "cues" not in fields:
        raise document.error("the field 'cues' is missing; it lists the prompts and their times")
    cues = tuple(_cue(node) for node in fields["cues"].items(MAX_CUES))
    length = _time(document, fields, ("frames", "seconds", "length"), MAX_FRAMES)
    timeline = Timeline(cues, length, settings)
    timeline.require_start()
    return timeline


def _cue(node: Node) -> Cue:
    fields = node.fields(CUE_FIELDS)
    frame = _time(node, fields, ("frame", "seconds", "at"), LAST_FRAME)
    if frame is None:
        raise node.error("a cue needs its time, as one of frame, seconds, at")
    blend, transition = read_blend(node, fields), read_transition(node, fields)
    restyling = read_restyling(node, fields)
    with within(node.place):
        return Cue(frame, blend, transition, restyling)


def read_blend(cue: Node, fields: dict[str, Node], single: str = "prompt") -> Blend:
    """What a cue shows: the text in its field `single`, or those in `prompts`."""
    if (single in fields) == ("prompts" in fields):
        raise cue.error(f"a cue needs either {single}, a text, or prompts, a list of texts with weights")
    if single in fields:
        text = fields[single].text("prompt")
        check_prompt(text, fields[single].place)
        return Blend.of(text)
    prompts = fields["prompts"]
    check_count(prompts.length(), prompts.place)
    parts = tuple(_part(node) for node in prompts.items())
    with within(cue.place):
        return Blend(parts)


def _part(node: Node) -> tuple[str, float]:
    fields = node.fields(("text", "weight"))
    if "text" not in fields:
        raise node.error("the field 'text' is missing")
    weight = maybe(fields.get("weight"), read_weight)
    return fields["text"].text("prompt"), 1.0 if weight is None else weight


def read_steps(node: Node) -> tuple[int, ...]:
    """Denoising steps, which descend from 1000 at most."""
    return tuple(item.whole() for item in node.items(MAX_STEP))


def read_weight(node: Node) -> float:
    """The weight of a prompt in a blend."""
    if isinstance(node.value, float):
        check_weight(node.value, node.place)
    return node.number(0, MAX_WEIGHT)


def read_transition(cue: Node, fields: dict[str, Node]) -> Transition | None:
    """How a cue comes into force."""
    if "transition" not in fields:
        return None
    node = fields["transition"]
    inner = node.fields(("blocks", "method"))
    if "blocks" not in inner:
        raise node.error("the field 'blocks' is missing; it says over how many blocks the prompt changes")
    blocks, method = inner["blocks"].whole(), maybe(inner.get("method"), read_method)
    with within(cue.place):
        return Transition(blocks, method or "linear")


def read_restyling(cue: Node, fields: dict[str, Node]) -> Restyling | None:
    """How pictures are restyled from a cue on."""
    if "restyling" not in fields:
        return None
    return read_restyling_fields(cue, fields["restyling"].fields(RESTYLING_FIELDS))


def read_restyling_fields(parent: Node, inner: dict[str, Node]) -> Restyling:
    """How pictures are restyled, as the fields say. Errors name `parent`."""
    noise_scale = maybe(inner.get("noise_scale"), lambda node: node.number(0, 1))
    follows_motion = maybe(inner.get("follows_motion"), read_flag)
    renews_sink, cuts = maybe(inner.get("renews_sink"), read_flag), maybe(inner.get("cuts"), read_flag)
    with within(parent.place):
        return Restyling(noise_scale, follows_motion, bool(renews_sink), bool(cuts))


def read_flag(node: Node) -> bool:
    """Whether or not."""
    if not isinstance(node.value, bool):
        raise node.error(f"{shown(node.value)} is neither true nor false")
    return node.value


def read_method(node: Node) -> Method:
    """The name of a way to interpolate."""
    for method in METHODS:
        if node.value == method:
            return method
    raise node.error(f"{shown(node.value)} is unknown; known: {', '.join(METHODS)}")


def _time(parent: Node, fields: dict[str, Node], names: tuple[str, str, str], last: int) -> int | None:
    """As a frame, of at most `last`; `names` are those of a time in frames, in seconds, and as a timecode."""
    given = [name for name in names if name in fields]
    if len(given) > 1:
        raise parent.error(f"{' and '.join(given)} say the same thing; give one of them")
    if not given:
        return None
    node, (frames, seconds, _) = fields[given[0]], names
    if given[0] == seconds:
        return frame_at(node.number(0, last // FRAMES_PER_SECOND))
    frame = node.whole() if given[0] == frames else _timecode(node)
    if not 0 <= frame <= last:
        raise node.error(f"{shown(node.value)} is outside 0..{last} frames")
    return frame


def _timecode(node: Node) -> int:
    if not isinstance(node.value, str):
        raise node.error(f'{shown(node.value)} is no timecode; write it in quotes, such as "00:02.980"')
    try:
        return frame_of(node.value)
    except ValueError as error:
        raise node.error(f"{shown(node.value)} {error}") from None


def own_document(timeline: Timeline) -> dict[str, Json]:
    """The timeline in Longtake's own format, with all times as frames."""
    settings = timeline.settings
    fields: dict[str, Json] = {
        "version": VERSION,
        "model": settings.model,
        "seed": settings.seed,
        "height": settings.height,
        "width": settings.width,
        "steps": None if settings.steps is None else list(settings.steps),
        "frames": timeline.frames,
        "cues": [cue_fields(cue) for cue in timeline.cues],
    }
    return {name: value for name, value in fields.items() if value is not None}


def cue_fields(cue: Cue) -> Json:
    """A cue of a timeline in Longtake's own format."""
    fields: dict[str, Json] = {"frame": cue.frame}
    if cue.blend == Blend.of(cue.blend.parts[0][0]):
        fields["prompt"] = cue.blend.text
    else:
        fields["prompts"] = [{"text": text, "weight": weight} for text, weight in cue.blend.parts]
    if cue.transition is not None:
        fields["transition"] = {"blocks": cue.transition.blocks, "method": cue.transition.method}
    if cue.restyling is not None:
        fields["restyling"] = restyling_fields(cue.restyling)
    return fields


def restyling_fields(restyling: Restyling) -> Json:
    """What of it is set."""
    fields: dict[str, Json] = {"renews_sink": True} if restyling.renews_sink else {}
    if restyling.cuts:
        fields["cuts"] = True
    if restyling.noise_scale is not None:
        fields["noise_scale"] = restyling.noise_scale
    if restyling.follows_motion is not None:
        fields["follows_motion"] = restyling.follows_motion
    return fields
