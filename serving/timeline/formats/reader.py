"""Timelines from files, in every format that Longtake reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.errors import TimelineError
from serving.timeline.formats.document import Node
from serving.timeline.formats.native import read_own
from serving.timeline.formats.parsing import parse_json, parse_yaml
from serving.timeline.formats.plain_text import SECONDS_A_PROMPT, read_plain
from serving.timeline.formats.scope import Remarks, read_scope_timeline, read_scope_workflow
from serving.timeline.timeline import Timeline

Format = Literal["longtake", "scope timeline", "scope workflow", "text"]

SUFFIXES = (".yaml", ".yml", ".json", ".scope-workflow.json", ".txt")
MAX_BYTES = 16 << 20
"""Of a file; half a day with a prompt in every block has some 10 million."""

MAX_YAML_BYTES = 256 << 10
"""Of a file in YAML, which takes far longer to be read."""


@dataclass(frozen=True)
class ReadTimeline:
    """A timeline as a file had it. `notes` are for information; `warnings` name what is not done as asked."""

    timeline: Timeline
    format: Format
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_timeline(
    path: Path, *, seconds_a_prompt: float = SECONDS_A_PROMPT, restyles: bool = False
) -> ReadTimeline:
    """Read a timeline; TimelineError names file, place and rule if it cannot be used.

    `seconds_a_prompt` is for text files, which say no times. What a file of Scope sets of pictures is read where
    the timeline `restyles` some.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes(path.name) + 1)
    except OSError as error:
        raise TimelineError(str(path), f"the file cannot be read: {error.strerror}") from None
    try:
        return parse_timeline(data, path.name, seconds_a_prompt=seconds_a_prompt, restyles=restyles)
    except TimelineError as error:
        raise TimelineError(f"{path}: {error.place}", error.problem) from None


def parse_timeline(
    data: bytes, name: str, *, seconds_a_prompt: float = SECONDS_A_PROMPT, restyles: bool = False
) -> ReadTimeline:
    """The timeline in the bytes of a file called `name`, as `read_timeline` reads it."""
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise TimelineError("the file", f"the suffix {suffix!r} is unknown; known: {', '.join(SUFFIXES)}")
    text = _decode(data, name)
    if suffix == ".txt":
        return ReadTimeline(read_plain(text, seconds_a_prompt), "text")
    if _is_yaml(name):
        return ReadTimeline(read_own(parse_yaml(text)), "longtake")
    is_workflow = name.lower().endswith(".scope-workflow.json")
    return _read_json(parse_json(text), workflow=is_workflow, restyles=restyles)


def most_bytes(name: str) -> int:
    """How long a file of that name may be."""
    return MAX_YAML_BYTES if _is_yaml(name) else MAX_BYTES


def _is_yaml(name: str) -> bool:
    return Path(name).suffix.lower() in (".yaml", ".yml")


def _decode(data: bytes, name: str) -> str:
    if len(data) > most_bytes(name):
        most = f"{MAX_YAML_BYTES >> 10} KiB; as JSON it may have " if _is_yaml(name) else ""
        raise TimelineError("the file", f"it is longer than {most}{MAX_BYTES >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TimelineError(f"byte {error.start}", "the file is not UTF-8 text") from None


def _read_json(document: Node, *, workflow: bool, restyles: bool) -> ReadTimeline:
    fields, remarks = document.fields(), Remarks()
    kind: Format = "scope timeline"
    if workflow or ("format" in fields and fields["format"].value == "scope-workflow"):
        kind, timeline = "scope workflow", read_scope_workflow(document, remarks, restyles=restyles)
    elif "prompts" in fields and "cues" not in fields:
        timeline = read_scope_timeline(document, remarks, restyles=restyles)
    else:
        return ReadTimeline(read_own(document), "longtake")
    return ReadTimeline(timeline, kind, tuple(remarks.notes), tuple(remarks.warnings))
