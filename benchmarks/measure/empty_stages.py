"""Stages that make nothing: what remains of a block is what the server itself does for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from engines.cache.kv_cache import PLAIN_KV, CacheLayout, KVCache, KVFormat, cache_size
from engines.cache.prompt_kv import EncodedPrompt
from engines.config.geometry import BlockLengths
from engines.config.networks import TransformerConfig
from engines.config.stream import StreamConfig
from engines.runner.protocol import BoundPass, ModelRunner
from engines.runner.rows import Row
from engines.streaming.generator import Generator
from engines.streaming.state import Block
from engines.text.prompt import Prompt
from serving.media.chunk import AccessUnit, Chunk
from serving.pipeline.stages import DecoderStage, TextEncoderStage
from serving.pipeline.video_decoder import DecoderStart
from serving.worker.state.metrics import Following, Metrics

CPU = torch.device("cpu")


class EmptyPass(BoundPass):
    """Leaves latents as they are and writes no keys."""

    @override
    def rotate_slots(self) -> None:
        pass

    @override
    def denoise(self, latents: Tensor, noise: Tensor | None) -> Tensor:
        return latents

    @override
    def write_kv(self, latents: Tensor) -> None:
        pass


class EmptyRunner(ModelRunner):
    """Runs no network; prompts have one key, which is zero."""

    def __init__(self, config: TransformerConfig) -> None:
        self._config = config
        self._prompt = torch.zeros(config.layers, 1, config.heads, config.head_dim)

    @property
    @override
    def config(self) -> TransformerConfig:
        return self._config

    @property
    @override
    def kv_format(self) -> KVFormat:
        return PLAIN_KV

    @override
    def bind(self, cache: KVCache) -> None:
        pass

    @override
    def unbind(self) -> None:
        pass

    @override
    def end_recording(self) -> None:
        pass

    @override
    def encode_prompt(self, prompt: Prompt) -> EncodedPrompt:
        return EncodedPrompt(self._prompt, self._prompt)

    @override
    def prepare(self, rows: Sequence[Row]) -> EmptyPass:
        return EmptyPass()


def empty_generator(transformer: TransformerConfig, stream: StreamConfig, kept_frames: int) -> Generator:
    """Generates one stream, whose blocks are noise."""
    runner = EmptyRunner(transformer)
    layout = CacheLayout.of(transformer, torch.float32, runner.kv_format)
    cache = KVCache(layout, cache_size(1, stream, transformer), CPU)
    return Generator(runner, None, cache, kept_frames=kept_frames)


class EmptyTextEncoder(TextEncoderStage):
    """Every prompt is one zero token."""

    def __init__(self, transformer: TransformerConfig) -> None:
        self._rows = torch.zeros(1, transformer.text_dim)

    @override
    async def encode(self, text: str) -> Prompt:
        return Prompt(text, self._rows)

    @override
    def check(self) -> None:
        pass


class EmptyDecoder(DecoderStage):
    """Every frame of its sessions, whose blocks are of `lengths`, is the same `data`."""

    def __init__(self, lengths: BlockLengths, data: bytes) -> None:
        self._lengths = lengths
        self._unit = AccessUnit(data, key=True)

    @override
    async def open(self, key: str, start: DecoderStart, *, moves: bool = False) -> None:
        pass

    @override
    async def decode(self, key: str, block: Block, traceparent: str | None = None) -> Chunk:
        first = self._lengths.pixel_frames(block.number)
        return Chunk(block.number, first, (self._unit,) * self._lengths.pixel_frames_of(block.number))

    @override
    async def close(self, key: str) -> None:
        pass

    @override
    def block_seconds(self, key: str) -> float | None:
        return None

    @override
    async def is_leaving(self, key: str) -> bool:
        return False

    @override
    def check(self) -> None:
        pass


class Uncounted(Metrics):
    """Nobody asks."""

    @override
    def stage(self, name: str, seconds: float) -> None:
        pass

    @override
    def slots(self, used: int, free: int) -> None:
        pass

    @override
    def following(self, now: Following) -> None:
        pass

    @override
    def block(self, *, late: bool, slack_s: float | None) -> None:
        pass

    @override
    def interval(self, seconds: float) -> None:
        pass

    @override
    def command_to_frame(self, seconds: float) -> None:
        pass

    @override
    def decoder_changed(self, *, planned: bool) -> None:
        pass

    @override
    def refused(self, reason: str) -> None:
        pass
