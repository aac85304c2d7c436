"""The stages beside the denoiser: text to prompts, latents to chunks. In its own process here, or behind Serve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Protocol, TypeVar

import torch
from typing_extensions import override

from engines.config.video_stream import AnyStreamConfig
from engines.streaming.state import Block
from engines.text.prompt import Prompt
from engines.text.prompt_encoder import PromptEncoder
from serving.background_tasks import wait_without_cancelling
from serving.media.chunk import Chunk
from serving.pipeline.engine_errors import refused
from serving.pipeline.video_decoder import DecoderStart, VideoDecoder
from serving.pipeline.work_watch import WorkWatch

T = TypeVar("T")


class TextEncoderStage(Protocol):
    """Encodes prompts."""

    async def encode(self, text: str) -> Prompt:
        """The prompt of `text`, rows on the CPU. Raises InvalidRequest, or ReplicaLost if nobody answers."""

    def check(self) -> None:
        """Raise RuntimeError if what encodes here does not do so any more."""


class DecoderStage(Protocol):
    """Decodes and encodes blocks; a session is pinned to the decoder that opened it."""

    async def open(self, key: str, start: DecoderStart, *, moves: bool = False) -> None:
        """Begin, or begin again elsewhere, at `start`; one that `moves`, where nothing is being taken away.

        Raises SlotsFull, or ReplicaLost if nobody answers; what was open before is then open still.
        """

    async def decode(self, key: str, block: Block, traceparent: str | None = None) -> Chunk:
        """The chunk of the session's next block, or once more of its last; `traceparent` is the block's span.

        Raises ReplicaLost.
        """

    async def close(self, key: str) -> None:
        """Let go of a session."""

    def block_seconds(self, key: str) -> float | None:
        """What a session's last block took of this process's time; None where others decode, or none has been."""

    async def is_leaving(self, key: str) -> bool:
        """Whether what decodes the session is being taken away, and is there still."""

    def check(self) -> None:
        """Raise RuntimeError if what decodes here does not do so any more."""


async def in_thread(executor: Executor, work: Callable[[], T]) -> T:
    """Run `work` in `executor`, to its end even if the caller is cancelled: what it works on is left whole."""
    running = asyncio.get_running_loop().run_in_executor(executor, work)
    return await wait_without_cancelling(running)


def encode_text(encoder: PromptEncoder, text: str) -> Prompt:
    """The prompt of `text`, rows on the CPU.

    Raises InvalidRequest if nothing is left of it once cleaned, MemoryFull if there is no memory to encode it.
    """
    with refused():
        return encoder.encode(text)


class LocalTextEncoder(TextEncoderStage):
    """A text encoder in this process; `executor` has one thread."""

    def __init__(self, encoder: PromptEncoder, executor: Executor) -> None:
        self._encoder = encoder
        self._executor = executor
        self._watch = WorkWatch("encoding a text")

    def warm_up(self) -> None:
        """Encode something in the thread that will; returns when that is done."""
        self._executor.submit(self._encoder.warm_up).result()

    @override
    async def encode(self, text: str) -> Prompt:
        work = partial(encode_text, self._encoder, text)
        return await in_thread(self._executor, partial(self._watch.run, work))

    @override
    def check(self) -> None:
        self._watch.check()


class LocalDecoder(DecoderStage):
    """A video decoder in this process; `executor` has one thread."""

    def __init__(self, decoder: VideoDecoder, executor: Executor) -> None:
        self.decoder = decoder
        self._executor = executor
        self._watch = WorkWatch("decoding")

    def warm_up(self, streams: Sequence[AnyStreamConfig], channels: int, dtype: torch.dtype) -> None:
        """Decode blocks like those of `streams` in the thread that will; returns when that is done."""
        self._executor.submit(self.decoder.warm_up, streams, channels, dtype).result()

    def measure(self, stream: AnyStreamConfig, channels: int, dtype: torch.dtype) -> float:
        """How long a block takes in the thread that decodes; returns when that is known."""
        return self._executor.submit(self.decoder.measure, stream, channels, dtype).result()

    @override
    async def open(self, key: str, start: DecoderStart, *, moves: bool = False) -> None:
        await self._run(partial(self.decoder.open, key, start))

    @override
    async def decode(self, key: str, block: Block, traceparent: str | None = None) -> Chunk:
        arguments = (key, block.number, block.latents, block.ready, traceparent, block.lead_in)
        return await self._run(partial(self.decoder.decode, *arguments))

    @override
    async def close(self, key: str) -> None:
        await self._run(partial(self.decoder.close, key))

    @override
    def block_seconds(self, key: str) -> float | None:
        return self.decoder.block_seconds(key)

    @override
    async def is_leaving(self, key: str) -> bool:
        return False

    @override
    def check(self) -> None:
        self._watch.check()

    async def _run(self, work: Callable[[], T]) -> T:
        return await in_thread(self._executor, partial(self._watch.run, work))
