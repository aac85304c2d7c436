"""What `longtake plan --int8-convs` has to know of a decoder: ranges in streams of its own model, and the loss."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor

from engines.config.model import ModelConfig
from engines.config.stream import StreamConfig
from engines.config.validation import require
from engines.errors import PlanStopped
from engines.export.decoders import Codec
from engines.export.graph import Stage
from engines.export.quantized_convs import PictureLoss, Ranges
from engines.quantization.calibration import rollouts
from engines.quantization.conv_ranges import conv_ranges
from engines.quantization.picture_loss import int8_conv_loss
from serving.cli.terminal import show_line
from serving.cli.weights.quantize import BLOCKS, read_prompts, require_weights
from serving.weights.catalog import models_folder
from serving.weights.loader import open_model

SHOWN = 4
"""Of so many prompts one is kept back, to see what its pictures lose."""


def add_int8_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that go with `--int8-convs`."""
    parser.add_argument(
        "--int8-convs", action="store_true",
        help="the decoder's convolutions in INT8, for --decoder-convs int8; by streams that are made here",
    )  # fmt: skip
    parser.add_argument("--prompts", type=Path, help="a file with a prompt a line, to make those streams of")
    parser.add_argument("--blocks", type=int, help=f"made of each prompt (default: {BLOCKS})")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="that makes the streams (default: cpu)")


def require_watchable(options: argparse.Namespace, config: ModelConfig, stage: Stage) -> None:
    """With `--int8-convs`, raise ConfigError unless it is the decoder of a model that makes streams of prompts.

    Raises ModelError for one of random weights. Without, raises ConfigError for options that go with it.
    """
    if not options.int8_convs:
        for name in ("prompts", "blocks", "device"):
            unused = f"--{name} is of the streams that --int8-convs makes; say that too, or leave it out"
            require(vars(options)[name] is None, unused)
        return
    wrong = f"--int8-convs is of the decoder, not of the {stage}; say --stage decoder, or leave it out"
    require(stage == "decoder", wrong)
    silent = f"{config.name} only restyles videos: it makes no streams of prompts; leave --int8-convs out"
    require(not config.needs_video, silent)
    require_weights(config)


class WatchedConvs(NamedTuple):
    """Ranges of what a decoder's convolutions read, and what INT8 by them costs pictures of other streams."""

    ranges: Ranges
    loss: PictureLoss


def watch_convs(
    codec: Codec, config: ModelConfig, stream: StreamConfig, options: argparse.Namespace, interrupted: Event
) -> WatchedConvs:
    """Let a model that is watchable make streams, one for each prompt, and decode them.

    Raises ConfigError or ModelError for prompts of which no streams can be made, PlanStopped once `interrupted` is
    set.
    """
    texts = read_prompts(options.prompts, config)
    require(len(texts) > 1, f"one prompt is not enough: one of {SHOWN} is kept back, to see what pictures lose")
    streams = _streams(texts, stream, options, partial(_show, interrupted, "making stream", len(texts)))
    shown, watched = streams[::SHOWN], [each for number, each in enumerate(streams) if number % SHOWN]
    ranges = conv_ranges(codec, watched, partial(_show, interrupted, "watching the decoder: stream", len(watched)))
    losing = partial(_show, interrupted, "comparing pictures: stream", len(shown))
    return WatchedConvs(ranges, int8_conv_loss(codec, stream, ranges, shown, losing))


def _streams(
    texts: Sequence[str], stream: StreamConfig, options: argparse.Namespace, made: Callable[[int], None]
) -> list[Tensor]:
    open_one = partial(
        open_model, options.model, models_folder(options.models_dir), torch.device(options.device or "cpu")
    )
    # One network after the other: the text encoder is four times as large as the transformer.
    encode = open_one(torch.bfloat16, networks=["text_encoder"]).prompts.encode
    prompts = [encode(text) for text in texts]
    del encode
    model, streams = open_one(torch.float32, networks=["transformer"]).model, list[Tensor]()
    for latents in rollouts(model, prompts, stream, BLOCKS if options.blocks is None else options.blocks):
        streams.append(latents)
        made(len(streams))
    return streams


def _show(interrupted: Event, doing: str, of: int, done: int) -> None:
    show_line(f"{doing} {done}/{of}")
    if interrupted.is_set():
        raise PlanStopped("the decoder was not watched to the end; nothing has been built")
