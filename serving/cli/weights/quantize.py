"""`longtake quantize`: a model with its transformer in 8 bits, made on this machine."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engines.config.model import ModelConfig
from engines.config.quantization import ROUNDINGS, WEIGHT_FORMATS, QuantizationConfig
from engines.config.stream import StreamConfig
from engines.config.video_stream import AnyStreamConfig
from engines.errors import WeightsError
from engines.loading.lora import marks
from engines.loading.model import Network
from engines.loading.quantized_file import QUANTIZED_FILE, QuantizedHeader, write_quantized
from engines.pocket.world.captions import caption
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import Clip, Scene
from engines.quantization.calibration import calibrate
from engines.quantization.inputs import InputStatistics
from engines.quantization.modelopt_ranges import calibrate_by_modelopt, require_modelopt
from engines.quantization.prompts import PROMPTS
from engines.quantization.quantizer import quantize
from engines.quantization.recipes import default_recipe, layers_matching, quantized_layers
from engines.text.prompt import Prompt
from engines.video.builder import require_video
from serving.cli.options import add_lora_argument, size
from serving.cli.terminal import say, show_progress
from serving.errors import ModelError
from serving.launch.startup_checks import require_cuda
from serving.media.whole_file import whole_file
from serving.weights.catalog import CATALOG, models_folder
from serving.weights.loader import POCKET, OpenedModel, open_model
from serving.weights.quantized_model import QuantizedModel, model_config

RANGES = ("own", "modelopt")

BLOCKS = 5
"""Of each prompt's stream from prompts alone: the window of LongLive is full by then."""

POCKET_PROMPTS = 8
"""Of the pocket model's own world, which understands nothing else."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `longtake quantize`."""
    parser.add_argument("model", help="see `longtake models`")
    parser.add_argument("--to", choices=WEIGHT_FORMATS, required=True, help="what its linear layers are to hold")
    parser.add_argument("--output", type=Path, help="a folder (default: MODEL-FORMAT among the models)")
    parser.add_argument("--models-dir", type=Path, help="where the models are")
    parser.add_argument(
        "--hold-back", action="append", metavar="PATTERN",
        help="layers to leave in 16 bits, such as 'blocks.0.*', or 'none' (default: those that the model "
        "needs so; in int8 pocket's 'blocks.*.ffn.2')",
    )  # fmt: skip
    parser.add_argument("--smoothing", type=float, help="alpha of SmoothQuant; 0 for none (default: 0.5 for int8)")
    parser.add_argument(
        "--rounding", choices=ROUNDINGS, default="compensated",
        help="of weights: to the nearest step, or with columns that make up for each other's errors (the default)",
    )  # fmt: skip
    parser.add_argument(
        "--ranges", choices=RANGES, default="own",
        help="who watches the model: our own code, or modelopt, for a second opinion, which has to be installed",
    )  # fmt: skip
    parser.add_argument("--prompts", type=Path, help="a file with a prompt a line, to watch the model with")
    parser.add_argument(
        "--blocks", type=int, help=f"made of each prompt (default: {BLOCKS}; of a restyled video a window and two)"
    )
    parser.add_argument("--size", type=size, metavar="HEIGHTxWIDTH", help="of the pictures (default: the model's)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    add_lora_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Watch the model, round its weights, write them."""
    models = models_folder(options.models_dir)
    config = model_config(options.model, models)
    if config.transformer.quantization is not None:
        raise ModelError(f"{options.model} is quantized already; quantize {config.name} itself")
    require_weights(config)
    recipe = read_recipe(options, config)
    texts = read_prompts(options.prompts, config)
    if options.ranges == "modelopt":
        _require_ranges_used(recipe)
        require_modelopt()
    if options.device == "cuda":
        require_cuda()
    loras, watches = tuple(options.lora or ()), recipe.smoothing > 0 or recipe.rounding == "compensated"
    output = output_folder(options, models)
    open_one = partial(open_model, options.model, models, torch.device(options.device))
    # One network after the other: the text encoder is four times as large as the transformer.
    prompts = _encoded(open_one(torch.bfloat16, networks=["text_encoder"]), texts) if watches else []
    networks: list[Network] = ["transformer", "codec"] if config.needs_video else ["transformer"]
    opened = open_one(torch.float32, networks=networks, loras=loras)
    statistics = _watch(opened, prompts, recipe, options) if watches else InputStatistics()
    header = QuantizedHeader(
        model=config.name,
        recipe=recipe,
        source=opened.model.identity["transformer"],
        loras=marks(loras),
        prompts=hashlib.sha256("\n".join(texts).encode()).hexdigest() if watches else "",
        licence="; ".join(dict.fromkeys(origin.licence for origin in opened.origins)),
        longtake=version("longtake"),
        ranges=options.ranges,
    )
    state = opened.model.transformer.state_dict()
    quantize(state, config.transformer, recipe, statistics)
    _write(state, header, output)
    return 0


def output_folder(options: argparse.Namespace, models: Path) -> Path:
    """Where the model goes. Raises ModelError if nothing can be written there: it is watched for hours before."""
    plain = f"{options.model}-{options.to}"
    if options.output is None and options.lora:
        raise ModelError(f"servers take {plain} for the model without LoRAs; name this one by --output")
    output: Path = options.output or models / plain
    try:
        there = next(path for path in (output, *output.absolute().parents) if path.exists())
    except OSError as error:
        raise ModelError(f"{output} cannot be made: {error.strerror}; name another one by --output") from error
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ModelError(
            f"{output} cannot be made: {there} is no folder to write to; name another one by --output"
        )
    _require_same_kind(output, options)
    return output


def _require_same_kind(output: Path, options: argparse.Namespace) -> None:
    """Raise ModelError where another model is, or one with LoRAs where none are asked for."""
    if not (output / QUANTIZED_FILE).is_file():
        return
    with suppress(WeightsError):  # It is damaged: another one is what it needs.
        made = QuantizedModel.read(output)
        if made.base != options.model or (made.header.loras and not options.lora):
            what = f"{made.base} with LoRAs" if made.header.loras else made.base
            raise ModelError(f"{output} holds {what}: move it, or name another folder by --output")


def _write(state: Mapping[str, Tensor], header: QuantizedHeader, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    file, dtype = output / QUANTIZED_FILE, torch.float16 if header.model == POCKET else torch.bfloat16
    with whole_file(file) as place:
        write_quantized(place, state, header, dtype)
    size = file.stat().st_size / 1e6
    say(f"{output}: {header.model} in {header.recipe}; {size:,.1f} MB; licence: {header.licence}")


def require_weights(config: ModelConfig) -> None:
    """Raise ModelError for a model of random weights."""
    if config.name != POCKET and config.name not in CATALOG:
        raise ModelError(f"{config.name} has random weights, of which nothing can be made; see `longtake models`")


def read_recipe(options: argparse.Namespace, config: ModelConfig) -> QuantizationConfig:
    """What is asked for. Raises ModelError for a pattern that names no layer."""
    default = default_recipe(options.to, config)
    return replace(
        default,
        smoothing=default.smoothing if options.smoothing is None else options.smoothing,
        rounding=options.rounding,
        held_back=default.held_back if options.hold_back is None else _held_back(options.hold_back, config),
    )


def _require_ranges_used(recipe: QuantizationConfig) -> None:
    """Raise ModelError if nothing depends on ranges: rows are rounded by their own when they come."""
    if not recipe.smoothing:
        raise ModelError(f"--ranges modelopt changes nothing in {recipe}; ask for --smoothing 0.5 as well")


def _held_back(patterns: Sequence[str], config: ModelConfig) -> tuple[str, ...]:
    for pattern in patterns:
        if pattern != "none" and not layers_matching([pattern], config.transformer):
            known = quantized_layers(config.transformer)[0]
            raise ModelError(f"--hold-back {pattern!r} names no layer that is quantized, such as {known}")
    return layers_matching(patterns, config.transformer)


def read_prompts(path: Path | None, config: ModelConfig) -> list[str]:
    """Those in the file; without one, some that suit the model. Raises ModelError for a file without any."""
    if path is None:
        return _pocket_prompts() if config.name == POCKET else list(PROMPTS)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the prompts in {path} cannot be read: {error}") from error
    if not (texts := [line.strip() for line in lines if line.strip()]):
        raise ModelError(f"there is no prompt in {path}; it has one a line")
    return texts


def _pocket_prompts() -> list[str]:
    random = np.random.default_rng(0)
    return [caption(Scene.random(random), random) for _ in range(POCKET_PROMPTS)]


def watched_stream(config: ModelConfig) -> AnyStreamConfig:
    """A stream such as the model was made for."""
    return require_video(config) if config.needs_video else config.stream


def default_blocks(stream: AnyStreamConfig) -> int:
    """So many that the window is full."""
    return BLOCKS if isinstance(stream, StreamConfig) else stream.blocks.blocks_of(stream.window_frames) + 2


def moving_pictures(stream: AnyStreamConfig, frames: int, number: int) -> Tensor:
    """A clip of the pocket model's world: [frames, height, width, 3] uint8."""
    clip = Clip(Scene.random(np.random.default_rng(number)), number)
    (pictures,) = Renderer(stream.height, stream.width).render([clip], [0], frames)
    return pictures.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8)


def _encoded(opened: OpenedModel, texts: Sequence[str]) -> list[Prompt]:
    return [opened.prompts.encode(text) for text in texts]


def _watch(
    opened: OpenedModel, prompts: Sequence[Prompt], recipe: QuantizationConfig, options: argparse.Namespace
) -> InputStatistics:
    stream = watched_stream(opened.model.config)
    if options.size is not None:
        stream = replace(stream, height=options.size[0], width=options.size[1])
    blocks = default_blocks(stream) if options.blocks is None else options.blocks

    def show(made: int) -> None:
        of = len(prompts) * blocks
        show_progress(f"watching the model: block {made} of {of}", is_last=made == of)

    moments = recipe.rounding == "compensated"
    footage = partial(moving_pictures, stream, stream.blocks.pixel_frames(blocks))
    if options.ranges == "own":
        return calibrate(opened.model, prompts, stream, blocks, show, moments=moments, footage=footage)
    opinion = calibrate_by_modelopt(opened.model, prompts, stream, blocks, show, moments=moments, footage=footage)
    say(str(opinion))
    return opinion.statistics
