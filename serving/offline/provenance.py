"""The facts of a film: enough to make it again, and to show under which terms it was made.

They are in the film's metadata and as JSON beside it, once it is closed with the number of frames that came out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from engines.config.stream import StreamConfig
from engines.config.video_stream import VideoStreamConfig
from kernels.dispatch import EAGER
from serving.errors import FilmError, TimelineError
from serving.media.film_file import Made
from serving.offline.film_writer import read_facts
from serving.timeline.formats.document import Json, Node
from serving.timeline.formats.native import own_document, read_own
from serving.timeline.schedule import Schedule
from serving.timeline.timeline import Timeline
from serving.weights.loader import INT8_TEXT, CodecName, Origin

VERSION = 1


@dataclass(frozen=True)
class AppliedCue:
    """When a prompt came into force, beside when that was asked for."""

    asked_frame: int
    frame: int
    prompt: str


@dataclass(frozen=True)
class Start:
    """The snapshot that a film continues: its path from the film's folder, its SHA-256 and first frame."""

    snapshot: str
    sha256: str
    frame: int


@dataclass(frozen=True)
class UsedLoRA:
    """A LoRA that was merged: where it lies from the film's folder, or only its name; its weight and SHA-256."""

    file: str
    weight: float
    sha256: str


@dataclass(frozen=True)
class UsedClip:
    """The clip that was restyled: where it lies from the film's folder, its SHA-256, and how it was fitted."""

    file: str
    sha256: str
    fit: str


@dataclass(frozen=True)
class Facts:
    """What a film was made of. `weights` are fingerprints of the networks, `frames` those of the whole clip.

    On a CPU the number of `threads` changes the last bits of a sum, and so, after a while, the pictures.
    """

    longtake: str
    model: str
    codec: CodecName
    origins: tuple[Origin, ...]
    weights: Mapping[str, str | None]
    torch: str
    device: str
    threads: int
    dtype: str
    stream: StreamConfig | VideoStreamConfig
    timeline: Timeline
    cues: tuple[AppliedCue, ...]
    frames: int
    kernels: str = str(EAGER)
    start: Start | None = None
    loras: tuple[UsedLoRA, ...] = ()
    clip: UsedClip | None = None
    version: int = VERSION

    @property
    def int8_text(self) -> bool:
        """Whether the text encoder's weights were rounded."""
        return INT8_TEXT.items() <= self.weights.items()

    def document(self, made: Made | None = None) -> dict[str, Any]:
        """As JSON has it; of a film that was `made`, with the cues that came into force in it and no others."""
        document = asdict(self) | {"weights": dict(self.weights), "timeline": own_document(self.timeline)}
        if made is None:
            return document
        end = (self.start.frame if self.start else 0) + made.frames
        cues = [asdict(cue) for cue in self.cues if cue.frame < end]
        return document | {"cues": cues, "frames_made": made.frames, "complete": made.complete}

    @classmethod
    def of_film(cls, path: Path) -> Self:
        """The facts in a film. Raises FilmError if it is not one of ours, or of a version that is not known."""
        try:
            document = json.loads(read_facts(path))
            if document["version"] != VERSION:
                raise FilmError(f"{path} has facts of version {document['version']}; version {VERSION} is known")
            return cls._of_document(document)
        except (KeyError, TypeError, ValueError, TimelineError) as error:
            raise FilmError(f"the facts in {path} cannot be used: {error!r}") from error

    @classmethod
    def _of_document(cls, document: dict[str, Any]) -> Self:
        start, clip = document["start"], document.get("clip")
        stream = document["stream"] | {"steps": tuple(document["stream"]["steps"])}
        timeline: Json = document["timeline"]
        known = {name: value for name, value in document.items() if name not in ("frames_made", "complete")}
        made = {
            "origins": tuple(Origin(**origin) for origin in document["origins"]),
            "stream": StreamConfig(**stream) if clip is None else VideoStreamConfig(**stream),
            "clip": None if clip is None else UsedClip(**clip),
            "timeline": read_own(Node("timeline", timeline)),
            "cues": tuple(AppliedCue(**cue) for cue in document["cues"]),
            "loras": tuple(UsedLoRA(**lora) for lora in document.get("loras", ())),
            "start": None if start is None else Start(**start),
        }
        return cls(**known | made)


def applied_cues(planned: Schedule, begin: int = 0) -> tuple[AppliedCue, ...]:
    """Where each cue of a plan applies to a film from frame `begin` on, the one in force there included.

    A transition is listed with its first step.
    """
    cues: dict[int, AppliedCue] = {}
    for step in planned.steps:
        cues.setdefault(step.asked_frame, AppliedCue(step.asked_frame, step.frame, step.target.text))
    earlier = [cue for cue in cues.values() if cue.frame <= begin]
    return (*earlier[-1:], *(cue for cue in cues.values() if cue.frame > begin))
