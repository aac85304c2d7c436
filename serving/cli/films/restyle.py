"""`longtake generate --input`: from a clip and a timeline to a film."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from itertools import islice

from engines.config.geometry import FRAMES_PER_SECOND
from engines.config.video_stream import VideoStreamConfig
from engines.loading.model import Model
from engines.streaming.builder import EngineConfig
from engines.vae.protocol import use_fused_ops
from engines.video.builder import VideoEngine, build_video_engine
from engines.video.warmup import restyle_full_window
from serving.cli.films.filming import (
    cut_prompts,
    differences,
    facts_of,
    from_film,
    open_requested,
    show,
    warn,
)
from serving.cli.interrupts import interruptible
from serving.cli.terminal import show_line, tell
from serving.errors import ClipError, FilmError
from serving.media.clips.audio_track import add_audio
from serving.media.clips.clip_reader import ClipReader, open_clip
from serving.media.film_file import Made
from serving.offline.provenance import UsedClip
from serving.offline.renderer import Outputs
from serving.offline.request import ClipRequest, Request
from serving.offline.restyler import ClipRestyler
from serving.pipeline.prompts import encode_all
from serving.timeline.schedule import Schedule, schedule


def build_engine(model: Model, request: Request, stream: VideoStreamConfig) -> VideoEngine:
    """On the kernels that are asked for; warm, where graphs are to be recorded."""
    use_fused_ops(model.vae, request.kernels)
    if model.encoder is not model.vae:
        use_fused_ops(model.encoder, request.kernels)
    config = EngineConfig(stream, backends=request.kernels, graphs=request.graphs)
    engine = build_video_engine(model, config)
    if request.graphs:
        show_line("warming up")
        restyle_full_window(engine.generator, engine.encoder, stream)
        tell("")
    return engine


def restyle(request: Request, clip: ClipRequest, outputs: Outputs, options: argparse.Namespace) -> Made:
    """Make the film. Raises ClipError, FilmError, ConfigError and what opening a model raises."""
    stream = request.video_stream(clip)
    used = UsedClip(from_film(clip.path, outputs.film), _sha256(clip), clip.fit)
    planned = schedule(request.timeline, stream.blocks)
    with open_clip(clip.path, stream.height, stream.width, clip.fit) as reader:
        if clip.keep_audio and not reader.facts.has_audio:
            raise ClipError(f"{clip.path} has no audio to keep; leave --keep-audio out")
        opened, prompts, request = open_requested(request, options)
        engine = build_engine(opened.model, request, stream)
        generator = engine.generator.beside
        encoded = encode_all(planned, prompts)
        warn([*planned.warnings, *differences(request, opened, generator), *cut_prompts(encoded)])
        facts = replace(facts_of(request, planned, generator, opened.origins, outputs.film), clip=used)
        del opened, prompts  # The text encoder makes room for the stream.
        maker = ClipRestyler(engine, engine.generator.open(stream), planned, encoded, facts)
        with interruptible() as interrupted:
            pictures = islice(reader, planned.frames)
            made = maker.make(pictures, _expected(reader, planned), outputs, show, interrupted)
        warn(reader.warnings)
    if clip.keep_audio and made.frames:
        add_audio(outputs.film, clip.path, reader.facts.start_s)
    return made


def _expected(reader: ClipReader, planned: Schedule) -> int:
    """About how many frames the film will have."""
    clip = reader.facts.duration_s
    frames = planned.frames if clip is None else round(clip * FRAMES_PER_SECOND)
    return min(frames or 1, planned.frames or frames or 1)


def _sha256(clip: ClipRequest) -> str:
    """Of the clip. Raises FilmError unless it is the one that the film was made of."""
    try:
        with clip.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FilmError(
            f"the clip {clip.path} cannot be read: {error.strerror}; --input says where it is"
        ) from error
    if clip.sha256 not in (None, digest):
        raise FilmError(f"{clip.path} is not the clip that the film was made of: its SHA-256 differs")
    return digest
