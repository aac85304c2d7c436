"""Times streams that restyle a video, on random weights: pictures in, pixels out, beside the least time allowed.

    python -m benchmarks.video --model pocket
    python -m benchmarks.video --model streamdiffusionv2-1.3b --device cuda --sizes 480x832 512x512

For each size, number of steps and loop: a block's encoding, its passes with the window full and its decoding, one
after the other and overlapped as `longtake generate --input` runs them, and the time from the first pictures to
their frames. The floor of the passes counts a stream batch's weights once a tick. Then the passes of a block of
each of several streams, as sessions of a server make them: one after the other, and in passes that they share.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure.counts import Counts, Work
from benchmarks.measure.machine import RESULTS, Floor, Machine, Rates
from benchmarks.measure.sizes import SEED, frame_size
from benchmarks.measure.subject import Options, add_arguments, read_options
from benchmarks.measure.timing import Samples, timed
from engines.config.geometry import TEMPORAL_FACTOR
from engines.config.stream import StreamConfig
from engines.config.video_stream import LOOPS, VideoStreamConfig
from engines.loading.model import Model, Network
from engines.streaming.builder import EngineConfig
from engines.streaming.state import Block
from engines.text.prompt import Prompt
from engines.vae.protocol import use_fused_ops
from engines.video.builder import VideoEngine, build_video_engine, require_video
from engines.video.input import BlockInput, InputState
from engines.video.stream import VideoStream
from engines.video.warmup import restyle_full_window
from serving.media.whole_file import write_whole

NETWORKS: tuple[Network, ...] = ("transformer", "codec")

STEPS = (1, 2, 4)

TIMESTEPS = (700, 500, 400, 200)
"""Of the steps, as StreamDiffusionV2 publishes them: fewer steps are the first of these."""

PUBLISHED = "StreamDiffusionV2 publishes 16 frames/s for each H100, and 500 ms to the first frame"


@dataclass(frozen=True)
class Measured:
    """One kind of stream. Times are of a block with the window full; `first_ms` is of the first one.

    `overlapped_fps` is the rate at which frames come when a block is decoded while the next one is made. So many
    `streams` make the passes of a block each, `in_turn`, and `shared` by all.
    """

    stream: VideoStreamConfig
    encode: Samples
    generate: Samples
    decode: Samples
    floors: tuple[Floor, Floor, Floor]
    first_ms: float
    overlapped_fps: float
    streams: int
    in_turn: Samples
    shared: Samples

    @property
    def fps(self) -> float:
        """Frames a second, one stage after the other."""
        block_ms = self.encode.median_ms + self.generate.median_ms + self.decode.median_ms
        return TEMPORAL_FACTOR * self.stream.block_frames / block_ms * 1e3

    def row(self) -> str:
        """Of the table."""
        stream = self.stream
        times = zip((self.encode, self.generate, self.decode), self.floors, strict=True)
        cells = (f"{samples.median_ms:.1f} ({samples.median_ms / floor.ms:.1f})" for samples, floor in times)
        return (
            f"| {stream.height}x{stream.width} | {len(stream.steps)} | {stream.loop} | {' | '.join(cells)} "
            f"| {self.fps:.1f} | {self.overlapped_fps:.1f} | {self.first_ms:.0f} "
            f"| {self.streams}: {self.in_turn.median_ms:.1f} | {self.shared.median_ms:.1f} |"
        )


HEADING = """\
| size | steps | loop | encode ms (/ floor) | passes ms (/) | decode ms (/) | fps in turn | overlapped | first ms \
| passes of streams in turn, ms | shared, ms |
|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|"""


class VideoBenchmark:
    """One model, whose streams are measured one after the other, and then `together` of them."""

    def __init__(self, options: Options, together: int) -> None:
        self._options = options
        self._together = together
        self._model = Model.random(options.model, SEED, options.device, options.dtype, NETWORKS)
        for codec in {id(x): x for x in (self._model.vae, self._model.encoder)}.values():
            use_fused_ops(codec, options.kernels)
        self._rates = Rates.measure(options.device, options.dtype)

    def measure(self, stream: VideoStreamConfig) -> Measured:
        """A stream of one kind, once everything that it runs is warm."""
        options, streams = self._options, self._together
        config = EngineConfig(
            stream, sessions=streams, batch=streams, backends=options.kernels, graphs=options.graphs
        )
        engine = build_video_engine(self._model, config)
        for number in range(1, streams + 1):
            restyle_full_window(engine.generator, engine.encoder, stream, number)
        source = _Source(engine, options, stream)
        first = timed(source.next_block, options.device)
        source.fill()
        laps = [source.laps() for _ in range(options.runs)]
        encode, generate, decode = (Samples(lap) for lap in zip(*laps, strict=True))
        overlapped_fps = source.overlapped_fps(options.runs)
        sources = [source, *(_Source(engine, options, stream) for _ in range(streams - 1))]
        for other in sources:
            other.fill()
        in_turn, shared = (
            Samples(tuple(_passes_ms(engine, sources, size) for _ in range(options.runs))) for size in (1, streams)
        )
        measured = Measured(
            stream, encode, generate, decode, self._floors(stream), first.ms, overlapped_fps, streams, in_turn,
            shared,
        )  # fmt: skip
        engine.generator.beside.release()
        return measured

    def _floors(self, stream: VideoStreamConfig) -> tuple[Floor, Floor, Floor]:
        """Of encoding, passes and decoding."""
        alike = StreamConfig(
            height=stream.height, width=stream.width, block_frames=stream.block_frames,
            window_frames=stream.window_frames, sink_frames=stream.sink_frames,
        )  # fmt: skip
        options, steps = self._options, len(stream.steps)
        counts = Counts(options.model, alike, options.dtype, options.prompt_keys)
        encoder = replace(options.model, vae=options.model.encoder or options.model.vae)
        encoding = Counts(encoder, alike, options.dtype)
        step = counts.denoising_pass(stream.window_frames)
        weights = counts.parameters.denoising * options.dtype.itemsize
        shared = (steps - 1) * weights if stream.loop == "batch" else 0
        passes = step * steps + Work(0, -shared)
        work = (encoding.encode_block(), passes, counts.decode_block())
        encode, generate, decode = (self._rates.floor(each) for each in work)
        return encode, generate, decode


class _Source:
    """A stream that is fed random pictures."""

    def __init__(self, engine: VideoEngine, options: Options, config: VideoStreamConfig) -> None:
        self._engine = engine
        self._device = options.device
        self._stream: VideoStream = engine.generator.open(config)
        self._state: InputState = engine.encoder.start(config)
        rows = options.randn(options.prompt_tokens, options.model.transformer.text_dim)
        engine.generator.set_prompt(self._stream, Prompt("random", rows))
        draw = torch.Generator().manual_seed(SEED)
        size = (config.height, config.width, 3)
        self._first = torch.randint(0, 256, (config.blocks.pixel_frames(1), *size), generator=draw).to(torch.uint8)
        self._later = self._first[: TEMPORAL_FACTOR * config.block_frames]

    @property
    def is_full(self) -> bool:
        """Whether blocks come out and overwrite earlier ones in every window."""
        stream = self._stream
        used = stream.progress[: max(1, len(stream.rows) + 1)]
        filled = all(lane.filled == stream.window.frames for lane in used)
        return filled and stream.blocks > 1

    def fill(self) -> None:
        """Make blocks until the windows are full."""
        while not self.is_full:
            self.next_block()

    def next_input(self) -> tuple[VideoStream, BlockInput]:
        """The stream and the input of its next block; what was made of the blocks before it is not decoded."""
        (block,), self._state = self._engine.encoder.encode(self._stream.config, self._later, self._state)
        return self._stream, block

    def next_block(self) -> None:
        """From pictures to pictures."""
        for _ in self._stages():
            pass

    def laps(self) -> tuple[float, float, float]:
        """Milliseconds of each stage of a block, with the device idle before it."""
        stages = self._stages()
        encode, generate, decode = (timed(partial(next, stages), self._device).ms for _ in range(3))
        return encode, generate, decode

    def overlapped_fps(self, blocks: int) -> float:
        """Frames a second where a block is decoded once the next one has been begun."""
        generator, stream = self._engine.generator, self._stream
        held: Block | None = None
        frames, began = 0, time.perf_counter()
        for _ in range(blocks):
            made = self._generate()
            if held is not None:
                frames += generator.decode(stream, held).shape[0]
            held = made
        if held is not None:
            frames += generator.decode(stream, held).shape[0]
        return frames / (time.perf_counter() - began)

    def _stages(self) -> Iterator[None]:
        pictures = self._first if self._stream.entered == 0 else self._later
        inputs, self._state = self._engine.encoder.encode(self._stream.config, pictures, self._state)
        yield
        (block,) = self._engine.generator.generate([self._stream], inputs)
        yield
        if block is not None:
            self._engine.generator.decode(self._stream, block)
        yield

    def _generate(self) -> Block | None:
        stream, made_from = self.next_input()
        (block,) = self._engine.generator.generate([stream], [made_from])
        return block


def _passes_ms(engine: VideoEngine, sources: Sequence[_Source], size: int) -> float:
    """Milliseconds of the passes of a block of each, `size` streams at a time; the device is idle before."""
    due = [source.next_input() for source in sources]
    groups = [due[at : at + size] for at in range(0, len(due), size)]

    def passes() -> None:
        for group in groups:
            engine.generator.generate([stream for stream, _ in group], [block for _, block in group])

    return timed(passes, engine.generator.beside.cache.device).ms


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.set_defaults(model="pocket")
    parser.add_argument("--sizes", type=frame_size, nargs="+", metavar="HxW", help="else the model's own")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=list(STEPS), choices=range(1, len(TIMESTEPS) + 1),
        help="numbers of denoising steps",
    )  # fmt: skip
    parser.add_argument("--streams", type=int, default=2, help="that share passes, after one alone (default: 2)")
    parser.add_argument("--loops", choices=LOOPS, nargs="+", default=list(LOOPS))
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="else benchmarks/results/video_MODEL_DEVICE.json"
    )
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser, asked = parse(arguments)
    options = read_options(parser, asked)
    own, machine = require_video(options.model), Machine.here(options.device)
    benchmark = VideoBenchmark(options, asked.streams)
    print(machine, PUBLISHED, HEADING, sep="\n", flush=True)
    found: list[Measured] = []
    for height, width in asked.sizes or [(own.height, own.width)]:
        for steps in asked.steps:
            for loop in asked.loops:
                stream = replace(own, height=height, width=width, steps=TIMESTEPS[:steps], loop=loop)
                found.append(benchmark.measure(stream))
                print(found[-1].row(), flush=True)
    document = {
        "model": options.model.name,
        "machine": asdict(machine),
        "kernels": str(options.kernels),
        "graphs": options.graphs,
        "streams": [asdict(one) | {"frames_per_second": one.fps} for one in found],
    }
    file = asked.json or RESULTS / f"video_{options.model.name}_{options.device.type}.json"
    write_whole(file, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
