"""What Scope's files set of pictures that are restyled, as the cues of a timeline say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Self

from serving.errors import TimelineError
from serving.timeline.cue import Cue, Restyling
from serving.timeline.formats.document import Json, Node, maybe
from serving.timeline.formats.native import read_flag

RESTYLER = "streamdiffusionv2"
"""The one of Scope's pipelines whose settings of pictures hold here."""


class PictureFields(NamedTuple):
    """How one of the two formats calls them."""

    noise_scale: str
    noise_controller: str
    manage_cache: str
    input_mode: str

    def of(self, fields: Mapping[str, Node], pipeline: Json) -> dict[str, Node]:
        """Those of them that a file sets, if it is for the pipeline, and not for videos from prompts alone."""
        told = {name: fields[name] for name in self if name in fields}
        has_pictures = self.input_mode not in told or told[self.input_mode].value != "text"
        return told if pipeline == RESTYLER and has_pictures else {}


@dataclass(frozen=True)
class PictureSettings:
    """How pictures are restyled from the first cue on, and whether the video is cut where the prompt changes.

    As in Scope a transition does not cut.
    """

    start: Restyling | None = None
    cuts: bool = False

    @classmethod
    def read(cls, told: Mapping[str, Node], names: PictureFields) -> Self:
        """From fields that a file sets. Raises TimelineError for what cannot be."""
        scale = maybe(told.get(names.noise_scale), lambda node: node.number(0, 1))
        follows_motion = maybe(told.get(names.noise_controller), read_flag)
        cuts = bool(maybe(told.get(names.manage_cache), read_flag))
        if scale is None and follows_motion is None:
            return cls(None, cuts)
        try:
            return cls(Restyling(scale, follows_motion), cuts)
        except TimelineError as error:
            raise told[names.noise_scale].error(error.problem) from None

    def said_by(self, cues: Sequence[Cue]) -> tuple[Cue, ...]:
        """The cues of a file, of which there is one, with these settings."""
        changes = [
            cue.restyled(Restyling(cuts=True))
            if self.cuts and cue.transition is None and cue.blend != before.blend
            else cue
            for before, cue in pairwise(cues)
        ]
        return (replace(cues[0], restyling=self.start), *changes)
