"""Times a denoising pass in PyTorch's own operators, as they are and by torch.compile, beside the kernels.

    python -m benchmarks.compiled --model longlive-1.3b --device cuda

It is the baseline of whoever asks what own kernels are for. The pass is that of a stream whose window has rolled.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure.subject import Options, Subject, add_arguments, read_options
from benchmarks.measure.timing import Samples, sample
from engines.cache.kv_cache import KVCache
from engines.runner.eager import EagerRunner
from engines.runner.rows import Row, TokenGrid
from engines.sampling.flow_schedule import Level
from engines.streaming.stream import Stream
from engines.wan.transformer import AdaLNModulation, CausalTransformer
from kernels.dispatch import EAGER

MODE = "max-autotune-no-cudagraphs"
"""Recorded graphs of torch.compile would need inputs in place, as ours have."""

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


class CompiledRunner(EagerRunner):
    """PyTorch's operators, with the network's forward pass compiled."""

    def __init__(self, transformer: CausalTransformer, cache: KVCache, compiler: Compiler) -> None:
        super().__init__(transformer)
        self.bind(cache)
        self.flow = compiler(transformer.denoise)


def passes(options: Options, compiler: Compiler) -> dict[str, Samples]:
    """Times of one pass, by what runs it, on weights that are the same."""
    subject = Subject(options, streams=1)
    stream = subject.rolled()
    plain = Subject(replace(options, kernels=EAGER, graphs=False), streams=1)
    eager = plain.rolled()
    compiled = CompiledRunner(plain.transformer, plain.generator.cache, compiler)
    latents = options.randn(1, *stream.config.latent_shape(options.model.vae.latent_channels, stream.block_frames))
    own = subject.runner.prepare([_row(stream)])
    row = _row(eager)
    context, modulation = compiled.attention(row), compiled.modulations.at(row.level.timestep)
    runs: dict[str, Callable[[], Tensor]] = {
        "own kernels": lambda: own.denoise(latents, None),
        "PyTorch": lambda: plain.transformer.denoise(latents, AdaLNModulation(*modulation), context),
        "torch.compile": lambda: compiled.flow(latents, AdaLNModulation(*modulation), context),
    }
    return {name: _timed(name, run, options) for name, run in runs.items()}


@torch.inference_mode()
def _timed(name: str, run: Callable[[], Tensor], options: Options) -> Samples:
    times, _ = sample(lambda _: run(), options.runs, options.device)
    print(f"pass, {name}: {times.median_ms:.2f} ms", flush=True)
    return times


def _row(stream: Stream) -> Row:
    placement = stream.policy.place(stream.latent_frames, stream.block_frames, repeat=False)
    grid = TokenGrid(stream.config.rows, stream.config.columns)
    level: Level = stream.schedule.levels[-1]
    return Row(stream.lanes[0], stream.require_prompt_kv(), placement, grid, level)


def main() -> int:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled")
    add_arguments(parser)
    parser.add_argument("--mode", default=MODE, help=f"of torch.compile (default: {MODE})")
    arguments = parser.parse_args()
    print(f"torch.compile: {arguments.mode}", flush=True)
    passes(read_options(parser, arguments), partial(torch.compile, mode=arguments.mode))
    return 0


if __name__ == "__main__":
    sys.exit(main())
