"""What `longtake generate` is asked for: its options, a timeline or a film, and the model's own settings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from engines.config.stream import StreamConfig
from engines.config.video_stream import VideoStreamConfig
from engines.device.host_threads import usable_cores
from engines.loading.lora import LoRAFile
from engines.runner.selection import can_use_cuda_graphs
from engines.video.builder import require_video
from kernels.dispatch import KernelBackends, backends_for
from serving.config import DecoderConvs, DenoiserEngine, StageEngine
from serving.errors import FilmError, TimelineError
from serving.media.clips.picture_scaler import Fit
from serving.media.film_file import require_own_facts
from serving.offline.provenance import Facts, UsedClip
from serving.offline.renderer import Outputs
from serving.pipeline.stage_engine import described
from serving.timeline.formats.reader import read_timeline
from serving.timeline.schedule import frame_at
from serving.timeline.timeline import Settings, Timeline
from serving.weights.catalog import models_folder
from serving.weights.loader import DEFAULT_MODEL, CodecName
from serving.weights.quantized_model import model_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

FITS: tuple[Fit, ...] = get_args(Fit)

SHEET_SUFFIXES = (".png", ".jpg")

MAX_THREADS = 1024

TAIL_SECONDS = 10
"""What follows the last cue where no length is given."""


@dataclass(frozen=True)
class ClipRequest:
    """A clip that is to be restyled, and how; `sha256` is what it must have, if that is known.

    `base` is how the model restyles one; `noise_scale` replaces what that says.
    """

    path: Path
    fit: Fit
    keep_audio: bool
    base: VideoStreamConfig
    noise_scale: float | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Request:
    """What is to be made. `asked` is what the timeline and the options say of the stream in so many words.

    `remarks` are what is to be known of how the timeline was read.
    """

    model: str
    codec: CodecName
    timeline: Timeline
    base: StreamConfig
    asked: Settings
    device: torch.device
    dtype: torch.dtype
    threads: int
    snapshot: Path | None
    kernels: KernelBackends
    may_replay: bool = True
    loras: tuple[LoRAFile, ...] = ()
    earlier: Facts | None = None
    int8_text: bool = False
    decoder_engine: StageEngine = "auto"
    decoder_convs: DecoderConvs = "plain"
    text_engine: StageEngine = "auto"
    denoiser_engine: DenoiserEngine = "torch"
    clip: ClipRequest | None = None
    remarks: tuple[str, ...] = ()

    @property
    def graphs(self) -> bool:
        """Whether passes are replayed from CUDA graphs: wherever they can be, unless that is not wanted."""
        return self.may_replay and can_use_cuda_graphs(self.kernels, self.device)

    @property
    def computed_by(self) -> str:
        """The kernels, and what runs stages where that is not theirs, once "auto" has been decided."""
        decoder, text = (
            "torch" if engine == "auto" else engine for engine in (self.decoder_engine, self.text_engine)
        )
        return described(self.kernels, decoder, text, self.denoiser_engine, self.decoder_convs)

    @property
    def dtype_name(self) -> str:
        """As the options and the facts have it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def stream(self) -> StreamConfig:
        """`base`, but for what is asked."""
        asked = self.asked
        return replace(
            self.base,
            seed=self.base.seed if asked.seed is None else asked.seed,
            height=asked.height or self.base.height,
            width=asked.width or self.base.width,
            steps=asked.steps or self.base.steps,
        )

    def video_stream(self, clip: ClipRequest) -> VideoStreamConfig:
        """How the clip's model restyles one, but for what is asked."""
        asked, base = self.asked, clip.base
        return replace(
            base,
            seed=base.seed if asked.seed is None else asked.seed,
            height=asked.height or base.height,
            width=asked.width or base.width,
            steps=asked.steps or base.steps,
            noise_scale=base.noise_scale if clip.noise_scale is None else clip.noise_scale,
        )


def read_request(options: argparse.Namespace) -> Request:
    """What the options, and the timeline or film that they name, ask for."""
    return _film_request(options) if options.source.suffix == ".mp4" else _timeline_request(options)


def _timeline_request(options: argparse.Namespace) -> Request:
    """What a timeline's file and the options ask for."""
    read = read_timeline(options.source, restyles=options.input is not None)
    settings = read.timeline.settings
    model = options.model or settings.model or DEFAULT_MODEL
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = options.dtype or ("bfloat16" if device == "cuda" else "float32")
    config = model_config(model, models_folder(options.models_dir))
    timeline, clip = read.timeline, None
    if options.input is None:
        config.require_prompts_alone()
        _require_no_restyling(timeline)
    else:
        timeline, clip = _begun_as_asked(timeline, options.noise_scale), _clip(options, require_video(config))
    return Request(
        model,
        options.codec or "own",
        with_length(timeline, options.seconds, open_end=clip is not None),
        config.stream,
        _overridden(settings, options),
        _device(device),
        DTYPES[dtype],
        options.threads or min(torch.get_num_threads(), usable_cores()),
        options.snapshot,
        _plan(options.kernels, device, dtype),
        not options.no_graphs,
        tuple(options.lora or ()),
        int8_text=options.text_weights == "int8",
        decoder_engine=options.decoder_engine,
        decoder_convs=options.decoder_convs,
        text_engine=options.text_engine,
        denoiser_engine=options.denoiser_engine,
        clip=clip,
        remarks=(*read.notes, *(f"warning: {text}" for text in read.warnings)),
    )


def _require_no_restyling(timeline: Timeline) -> None:
    """Raise TimelineError for a cue that says how pictures are restyled, of which there are none."""
    for number, cue in enumerate(timeline.cues):
        if cue.restyling is not None:
            raise TimelineError(f"cues[{number}].restyling", "there are no pictures; name a clip with --input")


def _begun_as_asked(timeline: Timeline, noise_scale: float | None) -> Timeline:
    """`timeline`, whose first cue leaves the noise to an option that says how much there is."""
    first, *later = timeline.cues
    if noise_scale is None or first.restyling is None:
        return timeline
    first = replace(first, restyling=replace(first.restyling, noise_scale=None))
    return replace(timeline, cues=(first, *later))


def _clip(options: argparse.Namespace, base: VideoStreamConfig, used: UsedClip | None = None) -> ClipRequest:
    """The clip that is named, or that a film was made of."""
    path: Path = options.input or options.source.parent / (used.file if used else "")
    fit = options.fit or (used.fit if used else "fill")
    if fit not in FITS:
        raise FilmError(f"the film's clip was fitted by {fit!r}; known: {', '.join(FITS)}")
    if options.decoder_engine not in ("auto", "torch") or options.decoder_convs != "plain":
        raise FilmError("a clip is restyled with PyTorch's decoder; leave --decoder-engine and -convs out")
    if options.denoiser_engine != "torch":
        raise FilmError("a clip is restyled by PyTorch's passes; leave --denoiser-engine out")
    if options.snapshot is not None or options.snapshot_every is not None:
        raise FilmError("a film that restyles a clip goes on from no snapshot, and leaves none")
    return ClipRequest(path, fit, options.keep_audio, base, options.noise_scale, used.sha256 if used else None)


def _film_request(options: argparse.Namespace) -> Request:
    """What a film was made of, but for what the options change."""
    facts = Facts.of_film(options.source)
    snapshot = options.snapshot
    if facts.start is not None and snapshot is None:
        snapshot = options.source.parent / facts.start.snapshot
    device, dtype = options.device or facts.device, options.dtype or facts.dtype
    model = options.model or facts.model
    own, timeline, clip = facts.stream, facts.timeline, None
    if isinstance(own, VideoStreamConfig):
        timeline, clip = _begun_as_asked(timeline, options.noise_scale), _clip(options, own, facts.clip)
        own = model_config(model, models_folder(options.models_dir)).stream
    return Request(
        model,
        options.codec or facts.codec,
        with_length(timeline, options.seconds, open_end=clip is not None),
        own,
        _overridden(Settings(), options),
        _device(device),
        DTYPES[dtype],
        options.threads or facts.threads,
        snapshot,
        _plan(options.kernels, device, dtype),
        not options.no_graphs,
        loras=_loras_of(facts, options.source) if options.lora is None else tuple(options.lora),
        earlier=facts,
        int8_text=facts.int8_text if options.text_weights is None else options.text_weights == "int8",
        decoder_engine=options.decoder_engine,
        decoder_convs=options.decoder_convs,
        text_engine=options.text_engine,
        denoiser_engine=options.denoiser_engine,
        clip=clip,
    )


def _loras_of(facts: Facts, film: Path) -> tuple[LoRAFile, ...]:
    """What was merged when the film was made. Raises FilmError unless the same files are where they were."""
    files = []
    for used in facts.loras:
        file = LoRAFile(film.parent / used.file, used.weight)
        here = file.path.exists()
        if not here or file.sha256 != used.sha256:
            raise FilmError(
                f"the film was made with the LoRA {used.file}:{used.weight:g} (SHA-256 {used.sha256}), which "
                f"{'is another file now' if here else 'is not there'}; --lora FILE:WEIGHT says where it is"
            )
        files.append(file)
    return tuple(files)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise FilmError(
            "there is no CUDA device here; --device cpu makes the film on the CPU, though not the same one"
        )
    return torch.device(name)


def _plan(asked: Mapping[str, str], device: str, dtype: str) -> KernelBackends:
    try:
        return backends_for(_device(device), DTYPES[dtype], asked)
    except ValueError as error:
        raise FilmError(str(error)) from error


def with_length(timeline: Timeline, seconds: float | None, *, open_end: bool = False) -> Timeline:
    """A timeline that begins and ends; with an `open_end` only where it says when.

    Raises TimelineError if no cue is at frame 0.
    """
    timeline.require_start()
    if seconds is not None:
        return replace(timeline, frames=frame_at(seconds))
    if timeline.frames is None and not open_end:
        return replace(timeline, frames=timeline.cues[-1].frame + frame_at(TAIL_SECONDS))
    return timeline


def _overridden(settings: Settings, options: argparse.Namespace) -> Settings:
    """`settings`, but for what the options say."""
    height, width = options.size or (settings.height, settings.width)
    seed = settings.seed if options.seed is None else options.seed
    return replace(settings, seed=seed, height=height, width=width, steps=options.steps or settings.steps)


def read_outputs(options: argparse.Namespace, request: Request) -> Outputs:
    """Refuses what would be overwritten by mistake or cannot be written."""
    if options.output.suffix != ".mp4":
        raise FilmError(f"{options.output} does not end in .mp4, the only kind of film that is made")
    if options.sheet is not None and options.sheet.suffix.lower() not in SHEET_SUFFIXES:
        raise FilmError(f"{options.sheet} does not end in {' or '.join(SHEET_SUFFIXES)}")
    every = None if options.snapshot_every is None else max(1, frame_at(options.snapshot_every))
    outputs = Outputs(options.output, options.sheet, every)
    clip = None if request.clip is None else request.clip.path
    taken = {path.resolve() for path in (options.source, request.snapshot, clip) if path is not None}
    for path in (outputs.film, outputs.facts, outputs.sheet):
        if path is None:
            continue
        if not path.parent.is_dir():
            raise FilmError(f"{path.parent} is not a folder; make it first")
        if path.resolve() in taken:
            raise FilmError(
                f"{path} would be written over {path.name}, which the film is made from; choose another -o"
            )
        taken.add(path.resolve())
    require_own_facts(outputs.film)
    return outputs
