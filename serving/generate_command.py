"""`longtake generate`: from a timeline, or from a film made before, to a film."""

from __future__ import annotations

import argparse
import hashlib
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TypeVar

import torch

from engines.config import FRAMES_PER_SECOND, StreamConfig
from engines.generator import Generator
from engines.presets import preset
from engines.snapshot import restore
from engines.stream import Stream
from engines.wan.prompt_encoder import PromptEncoder
from serving.catalog import models_folder
from serving.errors import FilmError
from serving.facts import Facts, Start, applied_cues
from serving.generate import FilmMaker, Outputs, Progress
from serving.loading import DEFAULT_MODEL, open_model
from serving.timeline import MAX_SECONDS, Schedule, Settings, Timeline, frame_at, schedule
from serving.timeline_files import read_timeline

T = TypeVar("T")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

TAIL_SECONDS = 10
"""What follows the last cue where no length is given."""

SLAB_BYTES = 1 << 40
"""No limit: one film is one stream, and the device says when it is full."""


@dataclass(frozen=True)
class Request:
    """What is to be made: `stream` as far as the model, the timeline and the options say."""

    model: str
    timeline: Timeline
    stream: StreamConfig
    device: torch.device
    dtype: torch.dtype
    threads: int
    snapshot: Path | None
    earlier: Facts | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `longtake generate`."""
    parser.add_argument("source", type=Path, help="a timeline, or a film that `longtake generate` made")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILM.mp4")
    parser.add_argument("--model", help=f"see `longtake models`; else the timeline's, else {DEFAULT_MODEL}")
    parser.add_argument("--seed", type=int, help="another seed, another film")
    parser.add_argument("--size", type=_size, metavar="HEIGHTxWIDTH", help="such as 480x832; multiples of 16")
    parser.add_argument("--steps", type=_steps, metavar="1000,500", help="denoising steps, descending from 1000")
    parser.add_argument(
        "--seconds", type=_seconds, help="length; else the timeline's, else 10 s after its last cue"
    )
    parser.add_argument("--sheet", type=Path, metavar="SHEET.png", help="write a picture sheet as well")
    parser.add_argument(
        "--snapshot-every", type=_seconds, metavar="SECONDS", help="write snapshots, from which --from continues"
    )
    parser.add_argument("--from", dest="snapshot", type=Path, metavar="SNAPSHOT", help="continue from a snapshot")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="else cuda where there is one")
    parser.add_argument("--threads", type=int, help="of the CPU; else one for each core")
    parser.add_argument("--dtype", choices=DTYPES, help="else bfloat16 on cuda and float32 on the CPU")
    parser.add_argument("--models-dir", type=Path, help="where `longtake download` put the weights")


def run(options: argparse.Namespace) -> int:
    """Make the film; 130 if it was interrupted."""
    request = _film_request(options) if options.source.suffix == ".mp4" else _timeline_request(options)
    outputs = _outputs(options)
    torch.set_num_threads(request.threads)
    opened = open_model(request.model, models_folder(options.models_dir), request.device, request.dtype)
    generator = Generator(opened.model.transformer, opened.model.codec, slab_bytes=SLAB_BYTES)
    _require_same_weights(request, generator)
    stream, start = _begin(generator, request)
    planned = schedule(request.timeline, stream.config.block_frames)
    facts = Facts(
        longtake=version("longtake"),
        model=request.model,
        origins=opened.origins,
        weights=generator.identity,
        torch=torch.__version__,
        device=request.device.type,
        threads=request.threads,
        dtype=str(request.dtype).removeprefix("torch."),
        stream=stream.config,
        timeline=request.timeline,
        cues=applied_cues(planned),
        frames=planned.frames or 0,
        start=start,
    )
    for warning in (*planned.warnings, *_cut_prompts(planned, opened.prompts)):
        print(f"warning: {warning}", file=sys.stderr)
    maker = FilmMaker(generator, stream, opened.prompts, planned, facts)
    with _interruptible() as interrupted:
        made = maker.make(outputs, _show, interrupted)
    print(f"\n{outputs.film}: {made.frames} frames, {made.frames / FRAMES_PER_SECOND:.2f} s", file=sys.stderr)
    return 0 if made.complete else 130


def _timeline_request(options: argparse.Namespace) -> Request:
    """What a timeline's file and the options ask for."""
    read = read_timeline(options.source)
    for line in (*read.notes, *(f"warning: {text}" for text in read.warnings)):
        print(line, file=sys.stderr)
    settings = read.timeline.settings
    model = options.model or settings.model or DEFAULT_MODEL
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    return Request(
        model,
        _with_length(read.timeline, options),
        _stream(preset(model).stream, settings, options),
        device,
        DTYPES[dtype],
        options.threads or torch.get_num_threads(),
        options.snapshot,
    )


def _film_request(options: argparse.Namespace) -> Request:
    """What a film was made of, but for what the options change."""
    facts = Facts.of_film(options.source)
    snapshot = options.snapshot
    if facts.start is not None and snapshot is None:
        snapshot = options.source.with_name(facts.start.snapshot)
    return Request(
        options.model or facts.model,
        _with_length(facts.timeline, options),
        _stream(facts.stream, Settings(), options),
        torch.device(options.device or facts.device),
        DTYPES[options.dtype or facts.dtype],
        options.threads or facts.threads,
        snapshot,
        earlier=facts,
    )


def _with_length(timeline: Timeline, options: argparse.Namespace) -> Timeline:
    timeline.require_start()
    if options.seconds is not None:
        return replace(timeline, frames=frame_at(options.seconds))
    if timeline.frames is None:
        return replace(timeline, frames=timeline.cues[-1].frame + frame_at(TAIL_SECONDS))
    return timeline


def _stream(base: StreamConfig, settings: Settings, options: argparse.Namespace) -> StreamConfig:
    """`base`, but for what a timeline's settings say, but for what the options say."""
    height, width = options.size or (None, None)
    return replace(
        base,
        seed=_first(options.seed, settings.seed, base.seed),
        height=_first(height, settings.height, base.height),
        width=_first(width, settings.width, base.width),
        steps=_first(options.steps, settings.steps, base.steps),
    )


def _first(option: T | None, setting: T | None, default: T) -> T:
    given = default if setting is None else setting
    return given if option is None else option


def _outputs(options: argparse.Namespace) -> Outputs:
    """Refuses what would be overwritten by mistake or cannot be written."""
    if options.output.suffix != ".mp4":
        raise FilmError(f"{options.output} does not end in .mp4, the only kind of film that is made")
    if options.output.resolve() == options.source.resolve():
        raise FilmError(f"{options.output} is the film to make again; give another file to -o")
    for path in (options.output, options.sheet):
        if path is not None and not path.parent.is_dir():
            raise FilmError(f"{path.parent} is not a folder; make it first")
    every = None if options.snapshot_every is None else max(1, frame_at(options.snapshot_every))
    return Outputs(options.output, options.sheet, every)


def _require_same_weights(request: Request, generator: Generator) -> None:
    """A film is made again with the weights it was made with, unless another model is asked for."""
    earlier = request.earlier
    if earlier is not None and earlier.model == request.model and dict(earlier.weights) != generator.identity:
        revisions = ", ".join(f"{origin.repo}@{origin.revision}" for origin in earlier.origins)
        raise FilmError(f"the film was made with other weights of {request.model}: {revisions}, {earlier.dtype}")


def _begin(generator: Generator, request: Request) -> tuple[Stream, Start | None]:
    """The stream to go on with, and how the facts name the snapshot it comes from."""
    if request.snapshot is None:
        return generator.open(request.stream), None
    try:
        data = request.snapshot.read_bytes()
    except OSError as error:
        raise FilmError(f"the snapshot {request.snapshot} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    if request.earlier and request.earlier.start and request.earlier.start.sha256 != digest:
        raise FilmError(f"{request.snapshot} is not the snapshot that the film continued: its SHA-256 differs")
    stream = restore(generator, data).stream
    return stream, Start(request.snapshot.name, digest, stream.next_frame)


def _cut_prompts(planned: Schedule, encoder: PromptEncoder) -> Iterator[str]:
    """A sentence for each prompt that is too long for the model."""
    for text in dict.fromkeys(text for step in planned.steps for text, _ in step.target.parts):
        if cut := encoder.cut(text):
            yield f"the model does not read the last {cut} tokens of the prompt {text[:60]!r}..."


@contextmanager
def _interruptible() -> Iterator[Event]:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C is the ordinary one."""
    interrupted = Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(progress: Progress) -> None:
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    line = (
        f"block {progress.block}/{progress.blocks}  {progress.frames} frames  "
        f"{progress.frames_per_second:.1f} frames/s  {minutes}:{seconds:02d} left"
    )
    if sys.stderr.isatty():
        print(f"\r{line}\x1b[K", end="", file=sys.stderr)
    else:
        print(line, file=sys.stderr)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {MAX_SECONDS} s, which is a day")
    return seconds


def _size(text: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form HEIGHTxWIDTH, such as 480x832")
    return int(match[1]), int(match[2])


def _steps(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of steps, such as 1000,750,500,250")
    return tuple(int(step) for step in text.split(","))
