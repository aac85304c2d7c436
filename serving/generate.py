"""A timeline made into a film, block by block, in constant memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import NamedTuple

from torch import Tensor

from engines.blending import blend, interpolate
from engines.config import pixel_frames
from engines.errors import Cancelled
from engines.generator import Generator
from engines.prompt import Prompt
from engines.snapshot import take_light
from engines.stream import Stream
from engines.wan.prompt_encoder import PromptEncoder
from serving.errors import FilmError
from serving.facts import Facts
from serving.film import Film
from serving.sheet import Still, write_sheet
from serving.timeline import Blend, Schedule, Step
from serving.timelines.timecode import timecode

STILLS = 24
"""Pictures on a sheet, at most."""


@dataclass(frozen=True)
class Outputs:
    """What to write. `snapshot_every` counts pixel frames; None for no snapshots."""

    film: Path
    sheet: Path | None = None
    snapshot_every: int | None = None

    @property
    def facts(self) -> Path:
        """The facts as JSON, beside the film."""
        return self.film.with_suffix(".json")

    def snapshot(self, frame: int) -> Path:
        """The snapshot taken before `frame`, beside the film."""
        moment = timecode(frame).replace(":", "-")
        return self.film.with_name(f"{self.film.stem}.{moment}.snapshot")


class Progress(NamedTuple):
    """How far a film is: blocks of all, frames made so far, their rate, and the time left at that rate."""

    block: int
    blocks: int
    frames: int
    frames_per_second: float
    seconds_left: float


class Made(NamedTuple):
    """A film that has been written: its frames, and whether those are all that were asked for."""

    frames: int
    complete: bool


class PromptTrack:
    """The prompts of a plan, step by step: encoded, blended, and interpolated from what was in force before."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        self._source_step: int | None = None
        self._source: Prompt | None = None
        self._present: Prompt | None = None

    def advance(self, step: Step) -> Prompt:
        """The prompt of the next step of the plan."""
        if step.source != self._source_step:
            self._source_step, self._source = step.source, self._present
        target = self._encode(step.target)
        if step.source is not None and self._source is not None:
            target = interpolate(self._source, target, step.fraction, step.method)
        self._present = target
        return target

    def _encode(self, parts: Blend) -> Prompt:
        return blend([(self._encoder.encode(text), weight) for text, weight in parts.parts])


class FilmMaker:
    """Makes the film that a plan and its facts describe, from where `stream` stands.

    Raises FilmError, before anything is written, if the stream is at or past the end of the plan.
    """

    def __init__(
        self, generator: Generator, stream: Stream, encoder: PromptEncoder, planned: Schedule, facts: Facts
    ) -> None:
        if planned.blocks is None or stream.blocks >= planned.blocks:
            raise FilmError(f"the film begins at frame {stream.next_frame} and ends at frame {planned.frames}")
        self._generator = generator
        self._stream = stream
        self._encoder = encoder
        self._planned = planned
        self._blocks = planned.blocks
        self._facts = facts

    def make(self, outputs: Outputs, report: Callable[[Progress], None], interrupted: Event) -> Made:
        """Write the film, and what else is wanted; up to the last whole block once `interrupted` is set."""
        stream, stills, first = self._stream, [], self._stream.blocks
        wanted = _spread(first, self._blocks, STILLS)
        started = time.monotonic()
        with Film(
            outputs.film, stream.config.height, stream.config.width, json.dumps(self._facts.document())
        ) as film:
            for prompt, pictures in self._chunks(outputs, interrupted):
                if stream.blocks - 1 in wanted:
                    frame = pixel_frames((stream.blocks - 1) * stream.config.block_frames)
                    stills.append(Still(frame, prompt, pictures[0].clone()))
                film.append(pictures)
                report(_progress(stream.blocks - first, self._blocks - first, film.frames, started))
        made = Made(film.frames, stream.blocks == self._blocks)
        self._write_facts(outputs.facts, made)
        if outputs.sheet is not None and stills:
            write_sheet(outputs.sheet, stills)
        return made

    def _chunks(self, outputs: Outputs, interrupted: Event) -> Iterator[tuple[str, Tensor]]:
        """The prompt in force and the pictures of each block, as they are made."""
        stream, track, steps = self._stream, PromptTrack(self._encoder), list(self._planned.steps)
        text = "" if stream.prompt is None else stream.prompt.text
        while stream.blocks < self._blocks:
            while steps and steps[0].block <= stream.blocks:
                step = steps.pop(0)
                prompt = track.advance(step)
                if step.block == stream.blocks:
                    self._generator.set_prompt(stream, prompt)
                    text = step.target.text
            try:
                (block,) = self._generator.generate([stream], interrupted)
            except Cancelled:
                return
            pictures = self._generator.decode(stream, block).cpu()
            self._maybe_snapshot(outputs, stream)
            yield text, pictures

    def _maybe_snapshot(self, outputs: Outputs, stream: Stream) -> None:
        """Take a snapshot at the first block boundary at or after each multiple of the interval."""
        every, end = outputs.snapshot_every, stream.next_frame
        if every is None or stream.blocks == self._blocks:
            return
        begin = pixel_frames((stream.blocks - 1) * stream.config.block_frames)
        if end // every > begin // every:
            outputs.snapshot(end).write_bytes(take_light(self._generator, stream))

    def _write_facts(self, path: Path, made: Made) -> None:
        document = self._facts.document() | {"frames_made": made.frames, "complete": made.complete}
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _spread(first: int, end: int, most: int) -> set[int]:
    """At most `most` blocks, evenly spread over first..end-1."""
    count = min(most, end - first)
    return {first + number * (end - first) // count for number in range(count)}


def _progress(done: int, blocks: int, frames: int, started: float) -> Progress:
    seconds = max(time.monotonic() - started, 1e-9)
    return Progress(done, blocks, frames, frames / seconds, (blocks - done) * seconds / done)
