"""`longtake generate`: from a timeline, or from a film made before, to a film."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Event
from types import FrameType

import torch

from engines.config.geometry import FRAMES_PER_SECOND
from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.streaming.builder import EngineConfig, build_generator
from engines.streaming.generator import Generator
from engines.streaming.snapshot import read_config, restore
from engines.streaming.stream import Stream
from engines.streaming.warmup import warm_up
from engines.text.prompt import Prompt
from engines.vae.protocol import use_fused_ops
from kernels.dispatch import parse_backends
from serving.cli.options import add_lora_argument, seconds, size
from serving.cli.terminal import escaped, show_line
from serving.errors import FilmError
from serving.offline.provenance import Facts, Start, UsedLoRA, applied_cues
from serving.offline.renderer import FilmMaker, Progress
from serving.offline.request import DTYPES, MAX_THREADS, Request, read_outputs, read_request
from serving.pipeline.prompts import encode_all
from serving.timeline.schedule import Schedule, schedule
from serving.timeline.timeline import Settings
from serving.weights.catalog import models_folder
from serving.weights.loader import DEFAULT_MODEL, INT8_TEXT, OpenedModel, Origin, open_model

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals by which a command is asked to end; what it has made till then is kept."""

INTERRUPTED = 130
"""The exit status of a program that Ctrl-C has ended."""


def run(options: argparse.Namespace) -> int:
    """Make the film; 130 if it was interrupted."""
    request = read_request(options)
    outputs = read_outputs(options, request)
    torch.set_num_threads(request.threads)
    planned = schedule(request.timeline, request.stream.blocks)
    ready = _prepare(request, planned, options)
    print(f"kernels: {request.kernels}{'; replayed from graphs' if request.graphs else ''}", file=sys.stderr)
    facts = _facts(request, planned, ready, options.output)
    maker = FilmMaker(ready.generator, ready.stream, planned, ready.encoded, facts)
    with _interruptible() as interrupted:
        made = maker.make(outputs, _show, interrupted)
    if made.frames == 0:
        print("\ninterrupted before the first block: nothing is written", file=sys.stderr)
    else:
        seconds = made.frames / FRAMES_PER_SECOND
        print(f"\n{outputs.film}: {made.frames} frames, {seconds:.2f} s", file=sys.stderr)
    return 0 if made.complete else INTERRUPTED


@dataclass(frozen=True)
class Ready:
    """Everything loaded, checked and encoded; the text encoder has been let go."""

    generator: Generator
    stream: Stream
    start: Start | None
    encoded: Mapping[str, Prompt]
    origins: tuple[Origin, ...]


def _prepare(request: Request, planned: Schedule, options: argparse.Namespace) -> Ready:
    text_device = None if options.text_device is None else torch.device(options.text_device)
    folder = models_folder(options.models_dir)
    opened = open_model(
        request.model, folder, request.device, request.dtype, request.codec, text_device, loras=request.loras,
        int8_text=request.int8_text,
    )  # fmt: skip
    generator = _generator(opened.model, request)
    for warning in (*planned.warnings, *_differences(request, opened, generator)):
        print(f"warning: {escaped(warning)}", file=sys.stderr)
    encoded = encode_all(planned, opened.prompts)
    for warning in _cut_prompts(encoded):
        print(f"warning: {escaped(warning)}", file=sys.stderr)
    origins = opened.origins
    del opened  # The text encoder makes room for the stream.
    stream, start = _begin(generator, request, options.output)
    return Ready(generator, stream, start, encoded, origins)


def _generator(model: Model, request: Request) -> Generator:
    """A generator on the kernels that are asked for."""
    use_fused_ops(model.vae, request.kernels)
    return build_generator(model, EngineConfig(request.stream, backends=request.kernels, graphs=request.graphs))


def _facts(request: Request, planned: Schedule, ready: Ready, film: Path) -> Facts:
    return Facts(
        longtake=version("longtake"),
        model=request.model,
        codec=request.codec,
        origins=ready.origins,
        weights=ready.generator.identity | (INT8_TEXT if request.int8_text else {}),
        torch=torch.__version__,
        device=request.device.type,
        threads=request.threads,
        dtype=request.dtype_name,
        kernels=str(request.kernels),
        stream=ready.stream.config,
        timeline=request.timeline,
        cues=applied_cues(planned, ready.stream.next_frame),
        frames=planned.frames or 0,
        start=ready.start,
        loras=tuple(UsedLoRA(_from_film(file.path, film), file.weight, file.sha256) for file in request.loras),
    )


def _differences(request: Request, opened: OpenedModel, generator: Generator) -> Iterator[str]:
    """Refuse to make a film again with other weights than it was made with, unless other ones are asked for.

    Yields a warning for everything else that may make the pictures differ.
    """
    earlier = request.earlier
    if earlier is None or (earlier.model, earlier.codec) != (request.model, request.codec):
        return
    if [(lora.weight, lora.sha256) for lora in earlier.loras] != [(x.weight, x.sha256) for x in request.loras]:
        yield "the film was made with other LoRAs: the pictures will differ"
        return
    if _other_weights(earlier, request, generator) or earlier.origins != opened.origins:
        origins = ", ".join(f"{origin.repo}@{origin.revision}" for origin in earlier.origins)
        raise FilmError(f"the film was made with other weights of {request.model}: {origins}")
    pairs = {
        "dtype": (earlier.dtype, request.dtype_name),
        "device": (earlier.device, request.device.type),
        "threads": (earlier.threads, request.threads),
        "kernels": (earlier.kernels, str(request.kernels)),
        "torch": (earlier.torch, torch.__version__),
        "longtake": (earlier.longtake, version("longtake")),
    }
    for name, (then, now) in pairs.items():
        if then != now:
            yield f"the film was made with {name} {then}, here it is {now}: the pictures may differ"


def _other_weights(earlier: Facts, request: Request, generator: Generator) -> bool:
    """Whether networks that are known then and now are not the same; in another dtype that cannot be told."""
    now = generator.identity
    known = earlier.weights.keys() & now.keys()
    return request.dtype_name == earlier.dtype and any(earlier.weights[name] != now[name] for name in known)


def _begin(generator: Generator, request: Request, film: Path) -> tuple[Stream, Start | None]:
    """The stream to go on with, and how the facts name the snapshot it comes from."""
    path = request.snapshot
    if path is None:
        _warm_up(generator, request, request.stream)
        return generator.open(request.stream), None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FilmError(
            f"the snapshot {path} cannot be read: {error.strerror}; --from says where it is"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if request.earlier and request.earlier.start and request.earlier.start.sha256 != digest:
        raise FilmError(f"{path} is not the snapshot that the film continued: its SHA-256 differs")
    config = read_config(data)
    _require_asked(request.asked, config)
    _warm_up(generator, request, config)
    stream = restore(generator, data).stream
    return stream, Start(_from_film(path, film), digest, stream.next_frame)


def _from_film(path: Path, film: Path) -> str:
    """Where a file lies from a film's folder: both may be moved together."""
    return os.path.relpath(path.resolve(), film.resolve().parent)


def _warm_up(generator: Generator, request: Request, config: StreamConfig) -> None:
    """Record the graphs, if there are to be any, so that no block of the film waits for that."""
    if not request.graphs:
        return
    for progress in warm_up(generator, config):
        show_line(f"warming up: block {progress.done} of {progress.of}")
    print(file=sys.stderr)


def _require_asked(asked: Settings, config: StreamConfig) -> None:
    """A snapshot goes on as it began: refuse to ask for something else."""
    pairs = {
        "seed": (asked.seed, config.seed),
        "height": (asked.height, config.height),
        "width": (asked.width, config.width),
        "steps": (asked.steps, config.steps),
    }
    for name, (wanted, given) in pairs.items():
        if wanted is not None and wanted != given:
            raise FilmError(f"{name} {wanted} is asked for, but the snapshot goes on with {given}")


def _cut_prompts(encoded: Mapping[str, Prompt]) -> Iterator[str]:
    """A sentence for each prompt that is too long for the model."""
    for text, prompt in encoded.items():
        if prompt.cut_tokens:
            yield f"the model does not read the last {prompt.cut_tokens} tokens of the prompt {text[:60]!r}..."


@contextmanager
def _interruptible() -> Iterator[Event]:
    """An event that Ctrl-C, SIGTERM and a terminal that closes set; a second Ctrl-C is the ordinary one."""
    interrupted = Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, interrupt) for number in ENDING}
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
    show_line(line)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `longtake generate`."""
    parser.add_argument("source", type=Path, help="a timeline, or a film that `longtake generate` made")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILM.mp4")
    parser.add_argument("--model", help=f"see `longtake models`; else the timeline's, else {DEFAULT_MODEL}")
    parser.add_argument("--codec", choices=("own", "tiny"), help="tiny: the tiny autoencoder, much quicker")
    parser.add_argument("--seed", type=int, help="another seed, another film")
    parser.add_argument("--size", type=size, metavar="HEIGHTxWIDTH", help="such as 480x832; multiples of 16")
    parser.add_argument("--steps", type=_steps, metavar="1000,500", help="denoising steps, descending from 1000")
    parser.add_argument(
        "--seconds", type=seconds, help="length; else the timeline's, else 10 s after its last cue"
    )
    parser.add_argument("--sheet", type=Path, metavar="SHEET.png", help="write a picture sheet as well")
    parser.add_argument(
        "--snapshot-every", type=seconds, metavar="SECONDS", help="write snapshots, from which --from continues"
    )
    parser.add_argument("--from", dest="snapshot", type=Path, metavar="SNAPSHOT", help="continue from a snapshot")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="else cuda where there is one")
    parser.add_argument(
        "--text-weights",
        choices=("plain", "int8"),
        help="int8: half of the text encoder's memory; else plain",
    )
    parser.add_argument("--text-device", choices=("cpu", "cuda"), help="for the text encoder; else --device")
    parser.add_argument("--threads", type=_threads, help="of the CPU; else one for each core")
    parser.add_argument("--dtype", choices=DTYPES, help="else bfloat16 on cuda and float32 on the CPU")
    parser.add_argument(
        "--kernels", type=_kernels, default={}, metavar="CHOICE|OP=CHOICE,...",
        help="what computes each operation: auto, reference, library, flash-attn, triton",
    )  # fmt: skip
    parser.add_argument("--no-graphs", action="store_true", help="launch every kernel by itself on cuda")
    add_lora_argument(parser)
    parser.add_argument("--models-dir", type=Path, help="where `longtake download` put the weights")


def _kernels(text: str) -> dict[str, str]:
    try:
        return parse_backends(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _threads(text: str) -> int:
    threads = int(text)
    if not 1 <= threads <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text} is outside 1..{MAX_THREADS}")
    return threads


def _steps(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of steps, such as 1000,750,500,250")
    return tuple(int(step) for step in text.split(","))
