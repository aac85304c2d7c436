"""A clip restyled into a film, block by block, in constant memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from threading import Event
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engines.errors import Cancelled
from engines.streaming.state import Block
from engines.text.prompt import Prompt
from engines.video.builder import VideoEngine
from engines.video.input import InputState
from engines.video.stream import VideoStream
from serving.errors import FilmError
from serving.media.contact_sheet import Still, write_sheet
from serving.media.film_file import Made
from serving.media.ordinary_mp4 import writing
from serving.offline.film_writer import Film
from serving.offline.provenance import Facts
from serving.offline.renderer import STILLS, Outputs, Progress, progress
from serving.pipeline.prompts import PlannedPrompts
from serving.pipeline.restyling import noise_after, restyle
from serving.timeline.schedule import Schedule

CHUNK_BLOCKS = 3
"""Blocks of a chunk: each chunk begins with a key frame, and one for every four frames would be a waste."""


class PictureGroup(NamedTuple):
    """Pictures of one block, [frames, height, width, 3] uint8, the clip's being the first `shown`; its prompt."""

    pictures: Tensor
    shown: int
    text: str = ""


class Restyled(NamedTuple):
    """A block that has come out: its number, its pictures, the input that they are of, and the frames to show."""

    number: int
    pictures: Tensor
    group: PictureGroup


class ClipRestyler:
    """Makes a film of the clip's pictures, with the prompts of a plan.

    `pictures` of the clip are read as they are needed. Of the film there are as many frames as of the clip, or of
    the plan, if it has an end and that comes first.
    """

    def __init__(
        self,
        engine: VideoEngine,
        stream: VideoStream,
        planned: Schedule,
        encoded: Mapping[str, Prompt],
        facts: Facts,
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._track = PlannedPrompts(planned.steps, encoded)
        self._facts = facts

    def make(
        self, pictures: Iterable[np.ndarray], expected: int, outputs: Outputs, report: Callable[[Progress], None],
        interrupted: Event,
    ) -> Made:  # fmt: skip
        """Write the film and its sheet of about `expected` frames; up to the last whole block once `interrupted`.

        Raises FilmError, and writes nothing, if there is no picture.
        """
        stills: list[Still] = []
        size = self._stream.config
        with Film(outputs.film, size.height, size.width, self._facts) as film:
            self._write(film, pictures, expected, stills, report, interrupted)
            if film.frames == 0 and not interrupted.is_set():
                raise FilmError("the clip has no picture to restyle")
            made = film.close(complete=not interrupted.is_set())
        if outputs.sheet is not None and stills:
            with writing(outputs.sheet):
                write_sheet(outputs.sheet, stills)
        return made

    def _write(
        self, film: Film, pictures: Iterable[np.ndarray], expected: int, stills: list[Still],
        report: Callable[[Progress], None], interrupted: Event,
    ) -> None:  # fmt: skip
        blocks, started, shown = self._stream.config.blocks, time.monotonic(), 0
        expected_blocks = max(1, blocks.block_at(expected))
        every = max(1, expected_blocks // STILLS)
        chunk: list[Tensor] = []
        with ThreadPoolExecutor(max_workers=1) as writer:
            pending: Future[None] | None = None
            for made in self._restyled(pictures, interrupted):
                if made.number % every == 0 and len(stills) < STILLS:
                    both = torch.cat([made.group.pictures[0], made.pictures[0]])
                    stills.append(Still(blocks.pixel_frames(made.number), made.group.text, both))
                chunk.append(made.pictures[: made.group.shown])
                shown += made.group.shown
                if len(chunk) == CHUNK_BLOCKS:
                    pending = _append(writer, film, chunk, pending)
                    chunk = []
                done = made.number + 1
                report(progress(done, max(done, expected_blocks), shown, started))
            if chunk:
                pending = _append(writer, film, chunk, pending)
            if pending is not None:
                pending.result()

    def _restyled(self, pictures: Iterable[np.ndarray], interrupted: Event) -> Iterator[Restyled]:
        """Each block as it comes out; it is decoded once the next one has been begun."""
        stream, generator = self._stream, self._engine.generator
        groups: dict[int, PictureGroup] = {}
        state = self._engine.encoder.start(stream.config)
        held: Block | None = None
        for number, group in enumerate(self._groups(pictures)):
            prompt = self._track.at(number)
            if self._track.restyling is not None and self._track.restyling.cuts:
                yield from self._rest(held, groups)
                held = None
            groups[number] = group._replace(text=prompt.text)
            try:
                block, state = self._begin(group, prompt, state, interrupted)
            except Cancelled:
                return
            if held is not None:
                yield Restyled(held.number, generator.decode(stream, held), groups.pop(held.number))
            held = block
        yield from self._rest(held, groups)

    def _rest(self, held: Block | None, groups: dict[int, PictureGroup]) -> Iterator[Restyled]:
        """Blocks that have begun: the one that is still to be decoded, and those that are on their way."""
        stream, generator = self._stream, self._engine.generator
        for last in ([] if held is None else [held], generator.flush(stream)):
            for block in last:
                yield Restyled(block.number, generator.decode(stream, block), groups.pop(block.number))

    def _begin(
        self, group: PictureGroup, prompt: Prompt, state: InputState, interrupted: Event
    ) -> tuple[Block | None, InputState]:
        stream, generator = self._stream, self._engine.generator
        if (restyling := self._track.restyling) is not None:
            restyle(generator, stream, restyling)
            state = replace(state, noise=noise_after(state.noise, restyling))
            if restyling.cuts:
                state = self._engine.encoder.start(stream.config, stream.entered, state.noise)
        if stream.prompt is None or stream.prompt.text != prompt.text:
            generator.set_prompt(stream, prompt)
        inputs, after = self._engine.encoder.encode(stream.config, group.pictures, state)
        (block,) = generator.generate([stream], inputs, interrupted)
        return block, after

    def _groups(self, pictures: Iterable[np.ndarray]) -> Iterator[PictureGroup]:
        """The pictures of each block; the last block is filled with its last picture."""
        coming, blocks, number = iter(pictures), self._stream.config.blocks, 0
        while taken := list(islice(coming, blocks.pixel_frames_of(number))):
            wanted = blocks.pixel_frames_of(number)
            filled = taken + [taken[-1]] * (wanted - len(taken))
            yield PictureGroup(torch.from_numpy(np.stack(filled)), len(taken))
            number += 1


def _append(
    writer: ThreadPoolExecutor, film: Film, chunk: list[Tensor], before: Future[None] | None
) -> Future[None]:
    """Write a chunk in a thread, once the one before is written."""
    if before is not None:
        before.result()
    return writer.submit(film.append, torch.cat(chunk))
