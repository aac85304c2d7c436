"""The prompts of a plan, in the order in which they come into force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engines.errors import PromptError
from engines.text.blending import blend, interpolate
from engines.text.prompt import Prompt
from engines.text.prompt_encoder import PromptEncoder
from serving.errors import TimelineError
from serving.timeline.cue import Restyling
from serving.timeline.schedule import Schedule, Step


def encode_all(planned: Schedule, encoder: PromptEncoder) -> dict[str, Prompt]:
    """Every text of a plan, encoded and kept on the host: the text encoder is not needed any more.

    Raises TimelineError where nothing is left of a text once it is cleaned.
    """
    prompts: dict[str, Prompt] = {}
    for step in planned.steps:
        for text, _ in step.target.parts:
            if text in prompts:
                continue
            try:
                prompts[text] = encoder.encode(text)
            except PromptError as error:
                raise TimelineError(f"the cue at frame {step.asked_frame}", str(error)) from None
    return prompts


class PromptTrack:
    """Walks through steps as they come: blended prompts, and those between one cue and the next.

    `encoded` has every text of a step when it is taken.
    """

    def __init__(self, encoded: Mapping[str, Prompt]) -> None:
        self._encoded = encoded
        self._source_step: int | None = None
        self._source: Prompt | None = None
        self._present: Prompt | None = None

    def take(self, step: Step) -> Prompt:
        """The prompt that comes into force with `step`, the next one."""
        if step.source != self._source_step:
            self._source_step, self._source = step.source, self._present
        target = blend([(self._encoded[text], weight) for text, weight in step.target.parts])
        if step.source is None or self._source is None:
            self._present = target
        else:
            self._present = interpolate(self._source, target, step.fraction, step.method)
        return self._present

    def copy(self, encoded: Mapping[str, Prompt]) -> PromptTrack:
        """A track that goes on from here by itself."""
        track = PromptTrack(encoded)
        track._source_step, track._source, track._present = self._source_step, self._source, self._present
        return track


class PlannedPrompts:
    """The prompts of a whole plan, block by block."""

    def __init__(self, steps: Sequence[Step], encoded: Mapping[str, Prompt]) -> None:
        self._steps = list(reversed(steps))
        self._track = PromptTrack(encoded)
        self._present: Prompt | None = None
        self.restyling: Restyling | None = None

    def at(self, block: int) -> Prompt:
        """The prompt in force at `block`; blocks are asked for in their order, and block 0 has one.

        `restyling` is then what comes into force with the block.
        """
        self.restyling = None
        while self._steps and self._steps[-1].block <= block:
            step = self._steps.pop()
            self._present, self.restyling = self._track.take(step), step.restyling
        if self._present is None:
            raise TimelineError("cues", "no cue is at frame 0, where the stream begins")
        return self._present
