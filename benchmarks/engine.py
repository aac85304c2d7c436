"""Times every stage of the engine on random weights, beside the least time that the machine allows.

    python -m benchmarks.engine --model tiny-taehv
    python -m benchmarks.engine --model longlive-1.3b --device cuda
    python -m benchmarks.engine --model longlive-1.3b --device cuda --weights int8 --kernels keys=int8,values=int8

Frames per second are pixel frames delivered: a full window, with the clean pass and the decoding. The kernels in
use are printed; `--kernels` forces others (`kernels/dispatch.py`).
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.measure.counts import Counts, Work
from benchmarks.measure.delivery import Delivery, deliver
from benchmarks.measure.machine import RESULTS, Machine, Rates
from benchmarks.measure.report import BlockStages, Report, Stage
from benchmarks.measure.subject import Options, Subject, add_arguments, build, read_options
from benchmarks.measure.timing import WARM_UP, Samples, sample, timed
from engines.config.geometry import TEMPORAL_FACTOR
from engines.runner.rows import Row, TokenGrid
from engines.streaming.rollout import Rollout
from engines.text.umt5 import UMT5Encoder
from serving.media.whole_file import write_whole

STREAMS = 3
"""Open at a time: the one that is measured, one to make a block twice, one to see begin."""


class EngineBenchmark:
    """One model and one stream on it, whose stages are measured in the order in which the stream meets them."""

    def __init__(self, options: Options) -> None:
        self._options = options
        model = options.model
        self._counts = Counts(model, model.stream, options.dtype, options.prompt_keys)
        subject = Subject(options, STREAMS)
        self._codec, self._runner, self._generator = subject.codec, subject.runner, subject.generator
        self._rollout = Rollout(self._runner, self._generator.cache.prompts, options.device)
        self._prompt = subject.prompt
        if options.graphs:
            subject.warm_up()
        self._stream = self._generator.open(model.stream)
        self.wrong: list[str] = []
        """What was computed and must not be: the times of all that are reported mean nothing."""

    @torch.inference_mode()
    def stages(self) -> Iterator[Stage]:
        """Measure all stages but whole blocks and the text encoder, and leave the window full and rolled."""
        yield self._set_prompt()
        config = self._stream.config
        while self._stream.latent_frames < config.window_frames:
            frames = min(self._stream.latent_frames + self._stream.block_frames, config.window_frames)
            yield self._pass(f"pass, {frames} of {config.window_frames} frames")
            self._step()
        yield self._recache()
        self._step()
        yield self._pass("pass, window rolled")
        if self._stream.config.sink == "global":
            yield self._recache()
        yield self._encode_block()
        self._check()

    @torch.inference_mode()
    def blocks(self) -> BlockStages:
        """Measure whole blocks of the stream as its viewer gets them."""
        _reset_peak(self._options.device)
        for _ in range(WARM_UP):
            self._step()
        laps = [self._laps() for _ in range(self._options.runs)]
        generate, decode, clean = (Samples(lap) for lap in zip(*laps, strict=True))
        whole = Samples(tuple(sum(lap) for lap in laps))
        counts, config, peak = self._counts, self._stream.config, _peak(self._options.device)
        steps, frames, window = len(config.steps), config.block_frames, config.window_frames
        return BlockStages(
            Stage(f"generate, {steps} passes", counts.denoising_pass(window) * steps, generate, *peak),
            Stage(f"decode block, {frames} frames", counts.decode_block(), decode, *peak),
            Stage("clean pass", counts.clean_pass(frames, window), clean, *peak),
            Stage("whole block", counts.block(), whole, *peak),
        )

    def delivery(self) -> Delivery:
        """Measure the same stream with its parts overlapped."""
        self._generator.write_context([self._stream])
        return deliver(self._generator, self._codec, self._stream, self._prompt, self._options.runs)

    def _measure(self, name: str, work: Work, run: Callable[[int], Tensor | None]) -> Stage:
        _reset_peak(self._options.device)
        times, result = sample(run, self._options.runs, self._options.device)
        if result is not None:
            self._note_infinite(name, result)
        return Stage(name, work, times, *_peak(self._options.device))

    @torch.inference_mode()
    def encode_text(self) -> Stage:
        """Measure the text encoder, which is made for it: behind all whose peak of memory should leave it out."""
        tokens = self._options.prompt_tokens
        encoder = build(lambda: UMT5Encoder(self._options.model.text_encoder), self._options)
        prompts = torch.randint(encoder.config.vocab, (self._options.runs, 1, tokens), device=encoder.device)
        mask = torch.ones_like(prompts[0])

        def run(i: int) -> Tensor:
            rows: Tensor = encoder(prompts[i % len(prompts)], mask)
            return rows

        return self._measure(f"text encode, {tokens} tokens", self._counts.encode_text(tokens), run)

    def _set_prompt(self) -> Stage:
        work = self._counts.read_prompt(self._options.prompt_keys)

        def run(_: int) -> None:
            # Another one each time: what is in force already is not read again.
            self._generator.set_prompt(self._stream, replace(self._prompt))

        return self._measure("set prompt", work, run)

    def _pass(self, name: str) -> Stage:
        """A pass of the next block. It may be repeated, and the block will overwrite what it writes."""
        stream = self._stream
        placement = stream.policy.place(stream.latent_frames, stream.block_frames, repeat=False)
        grid = TokenGrid(stream.config.rows, stream.config.columns)
        bound = self._runner.prepare(
            [Row(stream.lanes[0], stream.require_prompt_kv(), placement, grid, stream.schedule.levels[-1])]
        )
        latents = self._random_latents(self._options.runs)

        def run(i: int) -> Tensor:
            return bound.denoise(latents[i % len(latents)], None)

        return self._measure(name, self._counts.denoising_pass(placement.used), run)

    def _recache(self) -> Stage:
        """A KV recache of a full window; it may be repeated, and leaves the stream as if it had not been."""
        stream = self._stream
        frames = stream.policy.place_recache(stream.latent_frames).frames
        twin = replace(stream)

        def run(_: int) -> None:
            self._rollout.recache([twin])

        work = self._counts.recache(keep_sink=frames < stream.config.window_frames)
        return self._measure(f"recache, {frames} frames", work, run)

    def _encode_block(self) -> Stage:
        config = self._stream.config
        frames = TEMPORAL_FACTOR * config.block_frames
        pictures = self._options.randn(self._options.runs, 1, frames, 3, config.height, config.width).sigmoid()
        history = self._codec.encode(pictures[0, :, :1], self._codec.start_encoding()).cache

        def run(i: int) -> Tensor:
            return self._codec.encode(pictures[i % len(pictures)], history).latents

        return self._measure(f"encode block, {frames} pictures", self._counts.encode_block(), run)

    def _check(self) -> None:
        """Note it unless the next block is finite, and the same when it is made twice."""
        twin = self._generator.fork(self._stream)
        (block,), (again,) = self._generator.generate([self._stream]), self._generator.generate([twin])
        self._note_infinite("block", block.latents)
        pictures = self._generator.decode(self._stream, block)
        if not torch.equal(block.latents, again.latents):
            self.wrong.append("the latents of a block made twice from one state differ")
        if not torch.equal(pictures, self._generator.decode(twin, again)):
            self.wrong.append("the pictures of a block decoded twice from one state differ")
        self._generator.close(twin)

    def _note_infinite(self, name: str, values: Tensor) -> None:
        if not values.isfinite().all():
            self.wrong.append(f"{name}: not all values are finite")

    def _laps(self) -> tuple[float, float, float]:
        """Milliseconds to generate the next block, to decode it, and to write its context."""
        device = self._options.device
        (block,), generate_ms = timed(lambda: self._generator.generate([self._stream]), device)
        _, decode_ms = timed(lambda: self._generator.decode(self._stream, block), device)
        _, settle_ms = timed(lambda: self._generator.write_context([self._stream]), device)
        return generate_ms, decode_ms, settle_ms

    def _step(self) -> None:
        """The next block, not timed."""
        (block,) = self._generator.generate([self._stream])
        self._generator.decode(self._stream, block)
        self._generator.write_context([self._stream])

    def _random_latents(self, count: int) -> Tensor:
        stream, channels = self._stream, self._options.model.vae.latent_channels
        return self._options.randn(count, 1, *stream.config.latent_shape(channels, stream.block_frames))


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class _Peak(NamedTuple):
    """Bytes as `Stage` has them: on CUDA since the last reset, elsewhere since the process began."""

    allocated: int
    reserved: int | None


def _peak(device: torch.device) -> _Peak:
    if device.type == "cuda":
        return _Peak(torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return _Peak(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, None)


def _heard(stage: Stage) -> Stage:
    """Say what a stage took, for whoever has to stop before the end."""
    print(f"{stage.name}: {stage.times.median_ms:.2f} ms", file=sys.stderr)
    return stage


def measure(options: Options) -> Report:
    """Run the whole benchmark."""
    benchmark = EngineBenchmark(options)
    stages = [_heard(stage) for stage in benchmark.stages()]
    block = BlockStages(*map(_heard, benchmark.blocks()))
    delivery = benchmark.delivery()
    print(delivery, file=sys.stderr)
    if options.text:
        stages.append(_heard(benchmark.encode_text()))
    return Report(
        model=options.model,
        dtype=options.dtype,
        stages=stages,
        block=block,
        delivery=delivery,
        wrong=tuple(benchmark.wrong),
        kernels=str(options.kernels),
        # Behind the stages, whose peaks of memory leave them out, and while the clocks are those of work.
        rates=Rates.measure(
            options.device, options.dtype, eight_bits=options.model.transformer.quantization is not None
        ),
        machine=Machine.here(options.device),
        skipped={} if options.text else {"text encode": "not loaded, as --no-text asks"},
    )


def main() -> int:
    """Measure what the command line asks for; 1 if something computed was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine")
    add_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="in benchmarks/results by default")
    arguments = parser.parse_args()
    options = read_options(parser, arguments)
    model = options.model
    report = measure(options)
    size = f"_{model.stream.height}x{model.stream.width}" if options.device.type == "cuda" else ""
    weights = f"-{arguments.weights}" if arguments.weights else ""
    file = arguments.json or RESULTS / f"engine_{model.name}{weights}{size}_{arguments.device}.json"
    write_whole(file, report.as_json())
    print(f"{report}\n{file}")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
