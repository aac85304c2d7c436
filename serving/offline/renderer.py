"""A timeline made into a film, block by block, in constant memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import NamedTuple

from torch import Tensor

from engines.errors import Cancelled
from engines.streaming.generator import Generator
from engines.streaming.snapshot import take_light
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from serving.errors import FilmError
from serving.media.contact_sheet import Still, write_sheet
from serving.media.film_file import Made, facts_path
from serving.media.ordinary_mp4 import writing
from serving.media.whole_file import whole_file
from serving.offline.film_writer import Film
from serving.offline.provenance import Facts
from serving.pipeline.prompts import PlannedPrompts
from serving.timeline.schedule import Schedule
from serving.timeline.timecode import timecode

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
        return facts_path(self.film)

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


class Begun(NamedTuple):
    """A block on its way: its first frame, the one behind its last, and the text of its prompt."""

    block: Block
    begin: int
    end: int
    text: str


class FilmMaker:
    """Makes the film that a plan and its facts describe, from where `stream` stands.

    Raises FilmError, before anything is written, if the stream is at or past the end of the plan.
    """

    def __init__(
        self,
        generator: Generator,
        stream: Stream,
        planned: Schedule,
        encoded: Mapping[str, Prompt],
        facts: Facts,
    ) -> None:
        if planned.blocks is None or stream.blocks >= planned.blocks:
            raise FilmError(f"the film begins at frame {stream.next_frame} and ends at frame {planned.frames}")
        self._generator = generator
        self._stream = stream
        self._track = PlannedPrompts(planned.steps, encoded)
        self._blocks = planned.blocks
        self._facts = facts

    def make(self, outputs: Outputs, report: Callable[[Progress], None], interrupted: Event) -> Made:
        """Write the film, and what else is wanted; up to the last whole block once `interrupted` is set.

        A block is decoded, and the one before it encoded, while the next one is generated. Nothing is written if
        there is not even one.
        """
        stills: list[Still] = []
        size = self._stream.config
        with Film(outputs.film, size.height, size.width, self._facts) as film:
            self._write(film, stills, outputs, report, interrupted)
            made = film.close(complete=self._stream.blocks == self._blocks)
        if outputs.sheet is not None and stills:
            with writing(outputs.sheet):
                write_sheet(outputs.sheet, stills)
        return made

    def _write(
        self,
        film: Film,
        stills: list[Still],
        outputs: Outputs,
        report: Callable[[Progress], None],
        interrupted: Event,
    ) -> None:
        """Generate, decode and encode what is wanted; all that was begun is written when this ends."""
        stream, started = self._stream, time.monotonic()
        first, first_frame = stream.blocks, stream.next_frame
        wanted = _spread(first, self._blocks, STILLS)
        with ThreadPoolExecutor(max_workers=1) as writer:
            pending: Future[None] | None = None
            for begun, pictures in self._chunks(outputs, interrupted):
                if pending is not None:
                    pending.result()
                pending = writer.submit(film.append, pictures)
                if begun.block.number in wanted:
                    stills.append(Still(begun.begin, begun.text, pictures[0].clone()))
                if self._snapshot_follows(begun, outputs):
                    self._snapshot(outputs.snapshot(begun.end))
                done = begun.block.number + 1 - first
                report(progress(done, self._blocks - first, begun.end - first_frame, started))
            if pending is not None:
                pending.result()

    def _chunks(self, outputs: Outputs, interrupted: Event) -> Iterator[tuple[Begun, Tensor]]:
        """Each block and its pictures, which are decoded when the next block has been begun.

        Before a snapshot nothing is begun: the stream stands behind the block when that is given.
        """
        held: Begun | None = None
        while self._stream.blocks < self._blocks:
            if held is not None and self._snapshot_follows(held, outputs):
                yield held, self._decode(held)
                held = None
            try:
                begun = self._begin(interrupted)
            except Cancelled:
                break
            if held is not None:
                yield held, self._decode(held)
            held = begun
        if held is not None:
            yield held, self._decode(held)

    def _begin(self, interrupted: Event) -> Begun:
        """Generate the next block. A cue that repeats the prompt in force changes nothing."""
        stream = self._stream
        prompt, begin = self._track.at(stream.blocks), stream.next_frame
        if stream.prompt is None or stream.prompt.text != prompt.text:
            self._generator.set_prompt(stream, prompt)
        (block,) = self._generator.generate([stream], interrupted)
        return Begun(block, begin, stream.next_frame, prompt.text)

    def _decode(self, begun: Begun) -> Tensor:
        return self._generator.decode(self._stream, begun.block)

    def _snapshot_follows(self, begun: Begun, outputs: Outputs) -> bool:
        """Whether a block has reached a multiple of the interval, and is not the last."""
        every, last = outputs.snapshot_every, begun.block.number == self._blocks - 1
        return every is not None and not last and begun.end // every > begun.begin // every

    def _snapshot(self, path: Path) -> None:
        with writing(path), whole_file(path) as place:
            place.write_bytes(take_light(self._generator, self._stream))


def _spread(first: int, end: int, most: int) -> set[int]:
    """At most `most` blocks, evenly spread over first..end-1."""
    count = min(most, end - first)
    return {first + number * (end - first) // count for number in range(count)}


def progress(done: int, blocks: int, frames: int, started: float) -> Progress:
    """After `done` of so many blocks since `started`, a time of `time.monotonic()`."""
    seconds = max(time.monotonic() - started, 1e-9)
    return Progress(done, blocks, frames, frames / seconds, (blocks - done) * seconds / done)
