"""What all ways of making a film have in common: its facts, warnings and progress."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from engines.runner.selection import require_runnable
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt
from engines.text.prompt_encoder import PromptEncoder
from serving.cli.terminal import show_line, tell
from serving.errors import FilmError
from serving.offline.provenance import Facts, UsedLoRA, applied_cues
from serving.offline.renderer import Progress
from serving.offline.request import Request
from serving.pipeline.stage_engine import ChosenDecoder, ChosenText, RunStage, StageChoice, open_text
from serving.timeline.schedule import Schedule
from serving.weights.catalog import models_folder
from serving.weights.loader import INT8_TEXT, OpenedModel, Origin, open_model
from serving.weights.quantized_model import model_config


class Requested(NamedTuple):
    """The model that is asked for, what makes prompts for it, and the request with the engine that runs that."""

    opened: OpenedModel
    prompts: PromptEncoder
    request: Request


def open_requested(request: Request, options: argparse.Namespace) -> Requested:
    """Open the model, with its text encoder. Raises as `require_runnable`, `open_model` and `open_text`."""
    text_device = None if options.text_device is None else torch.device(options.text_device)
    choice = StageChoice(
        "text", request.text_engine, request.model, request.codec, options.models_dir,
        text_device or request.device, int8_text=request.int8_text,
    )  # fmt: skip
    models = models_folder(options.models_dir)
    network = model_config(request.model, models).transformer
    require_runnable(network, request.kernels, request.device, request.dtype)
    opened = open_model(
        request.model, models, request.device, request.dtype, request.codec,
        text_device, loras=request.loras, int8_text=request.int8_text,
    )  # fmt: skip
    chosen = open_text(opened.prompts, opened.model.text_encoder, choice)
    tell_engine("text", chosen)
    return Requested(opened, chosen.prompts, replace(request, text_engine=chosen.engine))


def tell_engine(stage: RunStage, chosen: ChosenDecoder | ChosenText) -> None:
    """Say why PyTorch runs a stage for which "auto" looked for plans."""
    if chosen.why:
        tell(f"{stage} engine: {chosen.engine}, since {chosen.why}")


def warn(warnings: Iterable[str]) -> None:
    """Print each, once it is known."""
    for warning in warnings:
        tell(f"warning: {warning}")


def facts_of(
    request: Request, planned: Schedule, generator: Generator, origins: Sequence[Origin], film: Path
) -> Facts:
    """Of a film that begins at frame 0 of the stream that is asked for."""
    return Facts(
        longtake=version("longtake"),
        model=request.model,
        codec=request.codec,
        origins=tuple(origins),
        weights=generator.identity | (INT8_TEXT if request.int8_text else {}),
        torch=torch.__version__,
        device=request.device.type,
        threads=request.threads,
        dtype=request.dtype_name,
        kernels=request.computed_by,
        stream=request.stream if request.clip is None else request.video_stream(request.clip),
        timeline=request.timeline,
        cues=applied_cues(planned),
        frames=planned.frames or 0,
        loras=tuple(UsedLoRA(from_film(file.path, film), file.weight, file.sha256) for file in request.loras),
    )


def differences(request: Request, opened: OpenedModel, generator: Generator) -> Iterator[str]:
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
        "kernels": (earlier.kernels, request.computed_by),
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


def from_film(path: Path, film: Path) -> str:
    """Where a file lies from a film's folder: both may be moved together."""
    return os.path.relpath(path.resolve(), film.resolve().parent)


def cut_prompts(encoded: Mapping[str, Prompt]) -> Iterator[str]:
    """A sentence for each prompt that is too long for the model."""
    for text, prompt in encoded.items():
        if prompt.cut_tokens:
            yield f"the model does not read the last {prompt.cut_tokens} tokens of the prompt {text[:60]!r}..."


def show(progress: Progress) -> None:
    """On the terminal's last line."""
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    line = (
        f"block {progress.block}/{progress.blocks}  {progress.frames} frames  "
        f"{progress.frames_per_second:.1f} frames/s  {minutes}:{seconds:02d} left"
    )
    show_line(line)
