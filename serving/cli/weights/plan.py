"""`longtake plan`: plans of a model's stages, for the cards, or the CPU, that are to run them."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Event

import torch

from engines.config.model import ModelConfig
from engines.config.stream import StreamConfig
from engines.errors import PlanStopped
from engines.export.graph import STAGES
from engines.loading.stage_graphs import (
    STAGE_NETWORKS,
    StageExport,
    plan_dtype,
    source_dtype,
    stage_exports,
    with_int8_convs,
)
from engines.plans.builder import CPU, BuildStep, Watch
from engines.plans.libraries import LIBRARIES, plan_builder
from engines.plans.store import Plan, PlanStore
from serving.cli.interrupts import INTERRUPTED, interruptible
from serving.cli.options import size
from serving.cli.terminal import print_table, say, show_line, tell
from serving.cli.weights.int8_convs import add_int8_arguments, require_watchable, watch_convs
from serving.weights.catalog import models_folder
from serving.weights.downloader import LOCK
from serving.weights.loader import OpenedModel, open_model
from serving.weights.quantized_model import model_config

SHOWN_EVERY = 1.0
"""Seconds, at least, from one line of progress to the next."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `longtake plan`."""
    parser.add_argument("model", help="see `longtake models`")
    parser.add_argument("--stage", choices=STAGES, required=True, help="what the plans are to compute")
    parser.add_argument(
        "--for", dest="cards", required=True, metavar="SM[,SM...]", type=lambda text: text.split(","),
        help="compute capabilities of the cards that are to run them, such as sm_89,sm_120; or cpu",
    )  # fmt: skip
    parser.add_argument(
        "--library", choices=LIBRARIES, default=LIBRARIES[0],
        help="what builds and runs them: TensorRT-RTX builds on any machine (the default), TensorRT on the card; "
        "onnxruntime needs none",
    )  # fmt: skip
    parser.add_argument("--size", type=size, metavar="HEIGHTxWIDTH", help="of the pictures (default: the model's)")
    parser.add_argument("--codec", choices=("own", "tiny"), default="own", help="whose decoder is meant")
    parser.add_argument("--models-dir", type=Path, help="where the models are")
    add_int8_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Build what is not there yet; 130 if that is interrupted."""
    builder = plan_builder(options.library)
    target = builder.target(options.cards)
    models, stage = models_folder(options.models_dir), options.stage
    config = model_config(options.model, models)
    require_watchable(options, config, stage)
    stream = _stream(config, options)
    picture_size = None if stage == "text" else (stream.height, stream.width)
    on_cpu = target.capabilities == (CPU,)
    opened = open_model(
        options.model, models, torch.device("cpu"), source_dtype(stage, on_cpu=on_cpu), options.codec,
        networks=[STAGE_NETWORKS[stage]],
    )  # fmt: skip
    dtype = plan_dtype(stage, on_cpu=on_cpu)
    store = PlanStore(models / config.name, models / config.name / LOCK)
    plans = list[Plan]()
    exports, loss = stage_exports(opened.model, stage, stream, dtype, every_pass=on_cpu), None
    with interruptible() as interrupted:
        try:
            if options.int8_convs:
                convs = watch_convs(opened.model.vae, config, stream, options, interrupted)
                exports, loss = [with_int8_convs(export, convs.ranges) for export in exports], convs.loss
            for export in exports:
                watch, terms = _watch(export, interrupted), _license(opened)
                plans.append(store.obtain(export.write, picture_size, builder, target, terms, watch, loss))
        except PlanStopped as stopped:
            tell("", str(stopped))
            return INTERRUPTED
    _show(plans)
    return 0


def _stream(config: ModelConfig, options: argparse.Namespace) -> StreamConfig:
    """Raises ConfigError for a size that the model cannot make."""
    if options.size is None:
        return config.stream
    return replace(config.stream, height=options.size[0], width=options.size[1])


def _license(opened: OpenedModel) -> str:
    return "; ".join(dict.fromkeys(origin.licence for origin in opened.origins))


def _watch(export: StageExport, interrupted: Event) -> Watch:
    shown = -SHOWN_EVERY

    def watch(step: BuildStep) -> bool:
        nonlocal shown
        if time.monotonic() - shown >= SHOWN_EVERY:
            shown = time.monotonic()
            show_line(f"{export.name}: {step.phase} {step.done}/{step.steps}")
        return not interrupted.is_set()

    return watch


def _show(plans: list[Plan]) -> None:
    if sys.stderr.isatty():
        tell("")
    made = [plan.manifest for plan in plans]
    print_table(
        ("GRAPH", "FOR", "SIZE", "ACTIVATIONS", "LAYERS", "BUILT IN"),
        [
            (
                each.key.name, ", ".join(each.key.capabilities), _megabytes(each.bytes),
                "unknown" if each.activation_bytes is None else _megabytes(each.activation_bytes),
                str(each.layers), f"{each.seconds:.1f} s",
            )
            for each in made
        ],
    )  # fmt: skip
    first, folder = made[0], plans[0].folder.parent
    say(
        f"{folder}: by {first.key.library} {first.key.library_version}; licence of the weights: "
        f"{first.weights_licence}; of the library: {first.library_licence}"
    )
    if first.loss is not None:
        say(f"PSNR of pictures by INT8 convolutions, against those in fp32: {first.loss}")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
