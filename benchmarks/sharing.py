"""Times what shares a GPU: sessions that take turns, and the threads of the serving path.

    python -m benchmarks.sharing --model longlive-1.3b --device cuda

Sessions in turn: one, two and three streams whose windows have rolled; each block is decoded while the next
stream's is made. The serving path: passes, pictures and text each in a thread of its own, warmed up in it, with
latents copied to the host for a mirror; with and without texts being encoded meanwhile. What one part cannot do is
written down, and the others are measured all the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.measure.machine import RESULTS
from benchmarks.measure.subject import Options, Subject, add_arguments, build, read_options
from benchmarks.measure.timing import Samples
from engines.config.geometry import TEMPORAL_FACTOR
from engines.device.host_copy import HostCopier, PendingCopy
from engines.device.side_stream import EQUAL, SideStream
from engines.streaming.generator import Generator
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.text.umt5 import UMT5Encoder
from engines.vae.conv_cache import ConvCache
from engines.vae.frame_decoder import FrameDecoder
from serving.media.whole_file import write_whole

MOST_SESSIONS = 3
SETTLING = 2
"""Pictures at the beginning that are not counted."""

UNCOUNTED = SETTLING + 2
"""Blocks beside those whose intervals are: the first interval has two ends, and pictures come a block late."""


@dataclass(frozen=True)
class Shared:
    """Milliseconds from one block's pictures to the next's, whosever they are, and of texts encoded meanwhile."""

    name: str
    blocks: Samples | None
    frames_per_block: int
    texts: Samples | None = None
    failed: str | None = None

    @property
    def frames_per_second(self) -> float | None:
        """Pixel frames of all sessions together."""
        return None if self.blocks is None else self.frames_per_block / self.blocks.median_ms * 1e3

    @override
    def __str__(self) -> str:
        if self.blocks is None:
            return f"{self.name}: failed: {self.failed}"
        texts = "" if self.texts is None else f"; a text in {self.texts.median_ms:.1f} ms"
        return (
            f"{self.name}: {self.frames_per_second:.2f} pixel frames per second, a block in "
            f"{self.blocks.median_ms:.1f} ms, 95 % in {self.blocks.quantile_ms(0.95):.1f}{texts}"
        )

    def as_json(self) -> dict[str, Any]:
        """With every sample."""
        return asdict(self) | {"frames_per_second": self.frames_per_second}


class Times(NamedTuple):
    """Milliseconds of blocks, and of texts if there were any."""

    blocks: Samples
    texts: Samples | None = None


def in_turn(options: Options, sessions: int) -> Times:
    """Streams that take turns: each block's pictures are decoded while the next one's passes run."""
    subject = _warm(options, sessions)
    generator, streams = subject.generator, [subject.rolled() for _ in range(sessions)]
    before: tuple[Stream, Block] | None = None
    moments = []
    for number in range(sessions * options.runs + UNCOUNTED):
        stream = streams[number % sessions]
        generator.write_context([stream])
        (block,) = generator.generate([stream])
        if before is not None:
            generator.decode(*before)
            moments.append(time.perf_counter())
        before = stream, block
    generator.release()
    return Times(_intervals(moments))


class ServingPath:
    """Passes, pictures and text as a server has them: a thread, a queue and a warm-up each."""

    def __init__(self, options: Options, *, text: bool) -> None:
        self._options = options
        self._passes, self._decoding, self._reading = (
            ThreadPoolExecutor(1, name) for name in ("denoise", "decode", "text")
        )
        self._subject: Subject = self._passes.submit(_warm, options, 1, decodes=False).result()
        self._decoder: FrameDecoder = self._decoding.submit(self._warm_decoder).result()
        self._text = self._reading.submit(_Text, options).result() if text else None

    def run(self) -> Times:
        """Measure `runs` blocks; with a text, one is encoded beside each of them."""
        stream = self._passes.submit(self._subject.rolled).result()
        cache = self._decoder.rebuild_cache(list(stream.recent))
        texts: list[float] = []
        moments: list[float] = []
        pending: Future[ConvCache] | None = None
        for _ in range(self._options.runs + UNCOUNTED):
            reading = None if self._text is None else self._reading.submit(self._text.encode)
            block, mirror = self._passes.submit(_made, self._subject.generator, stream).result()
            if pending is not None:
                cache = pending.result()
                moments.append(time.perf_counter())
            pending = self._decoding.submit(self._seen, block, cache, mirror)
            if reading is not None:
                texts.append(reading.result())
        assert pending is not None
        pending.result()
        self._passes.submit(self._subject.generator.release).result()
        return Times(_intervals(moments), Samples(tuple(texts[SETTLING:])) if texts else None)

    def _warm_decoder(self) -> FrameDecoder:
        options = self._options
        device, channels = options.device, options.model.vae.latent_channels
        decoder = FrameDecoder(self._subject.codec, SideStream(device), HostCopier(device))
        decoder.warm_up(options.model.stream, channels, options.dtype)
        return decoder

    def _seen(self, block: Block, cache: ConvCache, mirror: PendingCopy) -> ConvCache:
        pictures = self._decoder.decode(block.latents, cache, block.ready)
        mirror.result()
        return pictures.cache


class _Text:
    """The text encoder with random weights, in a queue of its own."""

    def __init__(self, options: Options) -> None:
        self._encoder = build(lambda: UMT5Encoder(options.model.text_encoder), options)
        self._side, self._copier = SideStream(options.device, EQUAL), HostCopier(options.device)
        ids = torch.randint(self._encoder.config.vocab, (1, options.prompt_tokens))
        self._ids: Tensor = ids.to(options.device)
        self._mask = torch.ones_like(self._ids)
        self._loaded = self._side.record_event()
        self.encode()

    @torch.inference_mode()
    def encode(self) -> float:
        """Milliseconds until the rows are on the host."""
        begin = time.perf_counter()
        begun = self._side.begin(partial(self._encoder, self._ids, self._mask), self._loaded)
        self._copier.begin([begun.value], begun.done).result()
        return (time.perf_counter() - begin) * 1e3


def _warm(options: Options, sessions: int, *, decodes: bool = True) -> Subject:
    subject = Subject(options, sessions, decodes=decodes)
    subject.warm_up()
    return subject


def _made(generator: Generator, stream: Stream) -> tuple[Block, PendingCopy]:
    """The next block, and its latents on their way to a mirror."""
    generator.write_context([stream])
    (block,) = generator.generate([stream])
    return block, generator.copier.begin([block.latents], block.ready)


def _intervals(moments: Sequence[float]) -> Samples:
    return Samples(tuple((after - before) * 1e3 for before, after in pairwise(moments[SETTLING:])))


def measure(options: Options) -> list[Shared]:
    """All there is to measure; what fails says so."""
    parts: dict[str, Callable[[], Times]] = {
        f"{count} in turn": partial(in_turn, options, count) for count in range(1, MOST_SESSIONS + 1)
    }
    parts["three threads, no text"] = lambda: ServingPath(options, text=False).run()
    if options.text:
        parts["three threads, a text beside each block"] = lambda: ServingPath(options, text=True).run()
    frames = TEMPORAL_FACTOR * options.model.stream.block_frames
    return [_measured(name, part, frames) for name, part in parts.items()]


def _measured(name: str, part: Callable[[], Times], frames: int) -> Shared:
    try:
        times = part()
        found = Shared(name, times.blocks, frames, times.texts)
    except Exception as error:  # Whatever it is, the report says it, and the others are measured all the same.
        found = Shared(name, None, frames, failed=f"{type(error).__name__}: {error}"[:500])
    print(found, file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Measure what the command line asks for; 1 if a part failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing")
    add_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", default=RESULTS / "sharing.json")
    arguments = parser.parse_args()
    options = read_options(parser, arguments)
    found = measure(options)
    facts = options.facts | {"shared": [part.as_json() for part in found]}
    write_whole(arguments.json, json.dumps(facts, indent=1) + "\n")
    print("\n".join(map(str, found)))
    return 1 if any(part.failed for part in found) else 0


if __name__ == "__main__":
    sys.exit(main())
