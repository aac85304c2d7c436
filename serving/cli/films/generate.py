"""`longtake generate`: from a timeline, or from a film made before, to a film."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from engines.config.geometry import FRAMES_PER_SECOND
from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.runner.protocol import ModelRunner
from engines.streaming.builder import EngineConfig, build_generator
from engines.streaming.generator import Generator
from engines.streaming.snapshot import read_config, restore
from engines.streaming.stream import Stream
from engines.streaming.warmup import warm_up
from engines.text.prompt import Prompt
from engines.vae.protocol import StreamingDecoder
from kernels.dispatch import parse_backends
from serving.cli.films.filming import (
    cut_prompts,
    differences,
    facts_of,
    from_film,
    open_requested,
    show,
    tell_engine,
    warn,
)
from serving.cli.films.restyle import restyle
from serving.cli.interrupts import INTERRUPTED, interruptible
from serving.cli.options import add_lora_argument, seconds, size
from serving.cli.terminal import show_line, tell
from serving.errors import FilmError
from serving.media.film_file import Made, left_behind
from serving.offline.provenance import Start, applied_cues
from serving.offline.renderer import FilmMaker, Outputs
from serving.offline.request import DTYPES, FITS, MAX_THREADS, Request, read_outputs, read_request
from serving.pipeline.prompts import encode_all
from serving.pipeline.stage_engine import (
    DECODER_CONVS,
    DENOISER_ENGINES,
    STAGE_ENGINES,
    StageChoice,
    open_decoder,
    open_runner,
)
from serving.timeline.schedule import Schedule, schedule
from serving.timeline.timeline import Settings
from serving.weights.loader import DEFAULT_MODEL, Origin


def run(options: argparse.Namespace) -> int:
    """Make the film; 130 if it was interrupted."""
    request = read_request(options)
    tell(*request.remarks)
    outputs = read_outputs(options, request)
    warn(left_behind(outputs.film))
    torch.set_num_threads(request.threads)
    if request.clip is not None:
        return _finish(restyle(request, request.clip, outputs, options), outputs)
    planned = schedule(request.timeline, request.stream.blocks)
    ready = _prepare(request, planned, options)
    tell(f"kernels: {ready.kernels}{'; replayed from graphs' if request.graphs else ''}")
    facts = facts_of(request, planned, ready.generator, ready.origins, options.output)
    facts = replace(
        facts,
        stream=ready.stream.config,
        start=ready.start,
        kernels=ready.kernels,
        cues=applied_cues(planned, ready.stream.next_frame),
    )
    maker = FilmMaker(ready.generator, ready.stream, planned, ready.encoded, facts)
    with interruptible() as interrupted:
        return _finish(maker.make(outputs, show, interrupted), outputs)


def _finish(made: Made, outputs: Outputs) -> int:
    """Say what has been made; the exit status."""
    if made.frames == 0:
        tell("", "interrupted before the first block: nothing is written")
    else:
        seconds = made.frames / FRAMES_PER_SECOND
        tell("", f"{outputs.film}: {made.frames} frames, {seconds:.2f} s")
    return 0 if made.complete else INTERRUPTED


@dataclass(frozen=True)
class Ready:
    """Everything loaded, checked and encoded; the text encoder has been let go."""

    generator: Generator
    stream: Stream
    start: Start | None
    encoded: Mapping[str, Prompt]
    origins: tuple[Origin, ...]
    kernels: str


def _prepare(request: Request, planned: Schedule, options: argparse.Namespace) -> Ready:
    opened, prompts, request = open_requested(request, options)
    choice = StageChoice(
        "decoder",
        request.decoder_engine,
        request.model,
        request.codec,
        options.models_dir,
        request.device,
        [(request.stream.height, request.stream.width)],
        int8_convs=request.decoder_convs == "int8",
    )
    chosen = open_decoder(opened.model.vae, choice, request.kernels)
    tell_engine("decoder", chosen)
    denoiser = replace(
        choice, stage="denoiser", engine=request.denoiser_engine, int8_convs=False, loras=bool(request.loras)
    )
    runner = open_runner(opened.model.transformer, denoiser)
    request = replace(request, decoder_engine=chosen.engine)
    generator = _generator(opened.model, request, chosen.decoder, runner)
    warn([*planned.warnings, *differences(request, opened, generator)])
    encoded = encode_all(planned, prompts)
    warn(cut_prompts(encoded))
    origins = opened.origins
    del opened, prompts  # The text encoder makes room for the stream.
    stream, start = _begin(generator, request, options.output)
    return Ready(generator, stream, start, encoded, origins, request.computed_by)


def _generator(model: Model, request: Request, decoder: StreamingDecoder, runner: ModelRunner | None) -> Generator:
    """A generator on the kernels that are asked for, but for what a runner runs."""
    config = EngineConfig(request.stream, backends=request.kernels, graphs=request.graphs)
    return build_generator(model, config, decoder=decoder, runner=runner)


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
    return stream, Start(from_film(path, film), digest, stream.next_frame)


def _warm_up(generator: Generator, request: Request, config: StreamConfig) -> None:
    """Record the graphs, if there are to be any, so that no block of the film waits for that."""
    if not request.graphs:
        return
    for progress in warm_up(generator, config):
        show_line(f"warming up: block {progress.done} of {progress.of}")
    tell("")


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
    parser.add_argument(
        "--decoder-engine", choices=STAGE_ENGINES, default="auto",
        help="what decodes: onnx and tensorrt run what `longtake plan` made; auto: tensorrt if it did, or torch",
    )  # fmt: skip
    parser.add_argument(
        "--decoder-convs", choices=DECODER_CONVS, default="plain",
        help="int8: of what `longtake plan --int8-convs` made",
    )  # fmt: skip
    parser.add_argument(
        "--text-engine", choices=STAGE_ENGINES, default="auto", help="the engine of what encodes prompts"
    )
    parser.add_argument(
        "--denoiser-engine",
        choices=DENOISER_ENGINES,
        default="torch",
        help="of passes; onnx: on a CPU; tensorrt: of full windows, on a GPU",
    )
    parser.add_argument("--no-graphs", action="store_true", help="launch every kernel by itself on cuda")
    add_lora_argument(parser)
    parser.add_argument("--input", type=Path, metavar="CLIP", help="restyle this video; as long as it is")
    parser.add_argument("--fit", choices=FITS, help="how the clip fills the picture; else fill")
    parser.add_argument("--noise-scale", type=float, help="how much the clip is changed, 0..1; else the model's")
    parser.add_argument("--keep-audio", action="store_true", help="put the clip's audio into the film")
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
