"""What a viewer notices: pictures per second with all overlapped, and how long a prompt takes to be seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from typing_extensions import override

from benchmarks.measure.timing import Samples
from engines.config.geometry import TEMPORAL_FACTOR
from engines.config.stream import StreamConfig
from engines.streaming.generator import Generator
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from engines.vae.protocol import StreamingVAE

T = TypeVar("T")

SEEN = 5
"""Times that a prompt is waited for, at least: fewer have no median worth the name."""


@dataclass(frozen=True)
class Delivery:
    """Wall-clock times of the host, with the window full.

    `block`: from one block's pictures to the next one's, which is denoised while they are decoded. `switch`: from
    a new prompt at a block boundary to the pictures of the first latent frame under it, decoded by itself.
    `first`: the same for a new stream's first prompt; its noise is drawn in that time, as it is for a viewer.
    Texts are encoded before, and kernels compiled. `waits` is what PyTorch said of a block or a switch whose host
    waited for the device where it must not; None where it did not, or there is no GPU to ask.
    """

    block: Samples
    switch: Samples
    first: Samples
    frames_per_block: int
    waits: str | None

    @property
    def frames_per_second(self) -> float:
        """Pixel frames."""
        return self.frames_per_block / self.block.median_ms * 1e3

    @override
    def __str__(self) -> str:
        waits = "" if self.waits is None else f"\nthe host waits for the device: {self.waits}"
        return (
            f"{self.frames_per_second:.2f} pixel frames per second delivered, decoding beside the next block; "
            f"{self.switch.median_ms:.0f} ms from a switched prompt to its first latent frame's pictures, "
            f"{self.first.median_ms:.0f} ms from a new stream's{waits}"
        )

    def as_json(self) -> dict[str, Any]:
        """With every sample."""
        return asdict(self) | {
            "frames_per_second": self.frames_per_second,
            "switch_median_ms": self.switch.median_ms,
            "first_median_ms": self.first.median_ms,
        }


@torch.inference_mode()
def deliver(generator: Generator, codec: StreamingVAE, stream: Stream, prompt: Prompt, runs: int) -> Delivery:
    """Measure with `stream`, whose window is full and whose blocks are decoded; it goes on meanwhile."""
    seen = max(SEEN, runs // 2)
    return Delivery(
        block=_overlapped(generator, stream, runs),
        switch=after_one(lambda: _switch(generator, codec, stream, prompt), seen),
        first=after_one(lambda: _first(generator, codec, stream.config, prompt), seen),
        frames_per_block=TEMPORAL_FACTOR * stream.config.block_frames,
        waits=_waits(generator, stream, prompt),
    )


def after_one(measure: Callable[[], float], count: int) -> Samples:
    """Milliseconds of `count` calls, after one that is not counted: it compiles for shapes of its own."""
    measure()
    return Samples(tuple(measure() for _ in range(count)))


def _overlapped(generator: Generator, stream: Stream, runs: int) -> Samples:
    """Each block's pictures while the next one is on its way; the first two intervals are not counted."""
    (block,) = generator.generate([stream])
    moments = []
    for _ in range(runs + 3):
        generator.write_context([stream])
        (following,) = generator.generate([stream])
        generator.decode(stream, block)
        moments.append(time.perf_counter())
        block = following
    generator.decode(stream, block)
    return Samples(tuple((after - before) * 1e3 for before, after in pairwise(moments[2:])))


def _switch(generator: Generator, codec: StreamingVAE, stream: Stream, prompt: Prompt) -> float:
    """One after a block that is settled, and at rest."""
    generator.write_context([stream])
    ms, block = _until_seen(generator, codec, stream, prompt)
    generator.decode(stream, block)
    return ms


def _first(generator: Generator, codec: StreamingVAE, config: StreamConfig, prompt: Prompt) -> float:
    stream = generator.open(config)
    try:
        return _until_seen(generator, codec, stream, prompt)[0]
    finally:
        generator.close(stream)


def _until_seen(generator: Generator, codec: StreamingVAE, stream: Stream, prompt: Prompt) -> tuple[float, Block]:
    """Milliseconds from the prompt to pictures of the block's first latent frame, and the block."""

    def see() -> Block:
        generator.set_prompt(stream, prompt)
        (block,) = generator.generate([stream])
        assert stream.decoder is not None
        codec.decode(block.latents[:1].unsqueeze(0), stream.decoder).frames.mul(255).to(torch.uint8)
        return block

    return _waited(see, generator.cache.device)


def _waited(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Milliseconds until the device has done `work`, from rest."""
    _rest(device)
    begin = time.perf_counter()
    result = work()
    _rest(device)
    return (time.perf_counter() - begin) * 1e3, result


def _rest(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _waits(generator: Generator, stream: Stream, prompt: Prompt) -> str | None:
    """What PyTorch says where a block's passes, its clean pass, or a switch to a prompt make the host wait."""
    if generator.cache.device.type != "cuda":
        return None
    encoded = Prompt(prompt.text, prompt.rows.cpu())
    torch.cuda.set_sync_debug_mode("error")
    try:
        blocks: list[Block] = generator.generate([stream])
        generator.write_context([stream])
        generator.set_prompt(stream, encoded)
        blocks += generator.generate([stream])
    except RuntimeError as error:
        return str(error)[:500]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for block in blocks:
        generator.decode(stream, block)
    return None
