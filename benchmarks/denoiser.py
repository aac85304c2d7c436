"""Times the pocket model's blocks in PyTorch and by graphs of its passes, by onnxruntime on a CPU.

    python -m benchmarks.denoiser --runs 20 --json FILE

A block is all its denoising steps and its clean pass, over a window that has rolled; it is not decoded. Each call
makes the stream's next one, so that latents of the same block are compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure.stage_engines import (
    Call,
    Engine,
    EngineRow,
    Subject,
    add_arguments,
    by_onnxruntime,
    chosen_device,
    measure,
    report,
)
from benchmarks.measure.timing import WARM_UP
from engines.loading.model import Model
from engines.loading.stage_graphs import stage_exports
from engines.runner.by_graph import GraphRunner
from engines.runner.protocol import ModelRunner
from engines.streaming.builder import EngineConfig, build_generator
from engines.text.prompt import Prompt
from serving.weights.loader import OpenedModel, open_model

CPU = torch.device("cpu")
TEXT = "a red ball bounces over a green meadow"


def blocks(model: Model, prompt: Prompt, runner: ModelRunner | None) -> Call:
    """Makes the next block of a stream as often as it is called."""
    stream_config = model.config.stream
    generator = build_generator(model, EngineConfig(stream_config, decodes=False), runner=runner)
    stream = generator.open(stream_config)
    generator.set_prompt(stream, prompt)

    def make() -> Tensor:
        (block,) = generator.generate([stream])
        generator.write_context([stream])
        return block.latents

    while stream.latent_frames <= stream_config.window_frames:
        make()
    return make


def measure_blocks(opened: OpenedModel, folder: Path, runs: int) -> Iterator[EngineRow]:
    """By both engines."""
    model, prompt = opened.model, opened.prompts.encode(TEXT)

    def by_graphs() -> Call:
        exports = stage_exports(model, "denoiser", model.config.stream, torch.float32, every_pass=True)
        sessions = by_onnxruntime([each.write(folder / each.name) for each in exports])
        return blocks(model, prompt, GraphRunner(model.transformer, sessions))

    make, stream = blocks(model, prompt, None), model.config.stream
    exact = [make() for _ in range(WARM_UP + runs)][-1]
    call = f"{stream.block_frames} latent frames of {stream.height}x{stream.width}, {len(stream.steps)} steps"
    engines = [Engine("PyTorch", lambda: blocks(model, prompt, None)), Engine("onnxruntime", by_graphs)]
    yield from measure(Subject("pocket", call, exact), engines, CPU, runs)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.denoiser")
    add_arguments(parser, "blocks", devices=("cpu",))
    options = parser.parse_args(arguments)
    device = chosen_device(parser, options)
    opened = open_model("pocket", Path(), device, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        return report(measure_blocks(opened, Path(folder), options.runs), device, options.json)


if __name__ == "__main__":
    sys.exit(main())
