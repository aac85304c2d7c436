"""Streams rolled out on a transformer, freely or led step by step by the latents of another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from engines.cache.kv_cache import CacheLayout, KVCache, cache_size
from engines.config.stream import StreamConfig
from engines.runner.eager import EagerPass, EagerRunner
from engines.runner.protocol import ModelRunner
from engines.runner.rows import Row
from engines.sampling.flow_schedule import add_noise
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt
from engines.wan.transformer import CausalTransformer


@dataclass(frozen=True)
class Take:
    """What is rolled out: a stream of `blocks` for each prompt, with its number for a seed.

    The last two blocks follow the next stream's prompt: there is a KV recache before them.
    """

    stream: StreamConfig
    prompts: Sequence[Prompt]
    blocks: int

    def roll_out(self, runner: ModelRunner, transformer: CausalTransformer) -> list[Tensor]:
        """Latents of every block that a runner of `transformer` makes, [streams, frames, ...] fp32 on the CPU."""
        layout = CacheLayout.of(transformer.config, transformer.dtype, runner.kv_format)
        size = cache_size(len(self.prompts), self.stream, transformer.config)
        generator = Generator(runner, None, KVCache(layout, size, transformer.device))
        streams = [generator.open(replace(self.stream, seed=seed)) for seed in range(len(self.prompts))]
        turned, made = [*self.prompts[1:], self.prompts[0]], []
        for block in range(self.blocks):
            if block in (0, self.blocks - 2):
                for stream, prompt in zip(streams, turned if block else self.prompts, strict=True):
                    generator.set_prompt(stream, prompt)
            made.append(torch.stack([block.latents.float().cpu() for block in generator.generate(streams)]))
        generator.release()
        return made


@dataclass(frozen=True)
class Step:
    """One denoising step of one stream: the latents it was given, what it took for clean, and what came of it."""

    timestep: float
    given: Tensor
    clean: Tensor
    made: Tensor


class RecordingRunner(EagerRunner):
    """Keeps the denoising steps that it runs."""

    def __init__(self, transformer: CausalTransformer) -> None:
        super().__init__(transformer)
        self.steps: list[Step] = []

    @override
    def prepare(self, rows: Sequence[Row]) -> EagerPass:
        return _Recorded(self, rows)


class _Recorded(EagerPass):
    def __init__(self, runner: RecordingRunner, rows: Sequence[Row]) -> None:
        super().__init__(runner, rows)
        self._steps, self._level = runner.steps, rows[0].level

    @override
    def denoise(self, latents: Tensor, noise: Tensor | None) -> Tensor:
        clean = super().denoise(latents, None)
        made = clean if noise is None else add_noise(clean, noise, self._level.next_sigma)
        self._steps.append(Step(self._level.timestep, latents, clean, made))
        return made


class LedRunner(EagerRunner):
    """Runs the steps of another runner: each begins where that one's did, with keys and values of its own.

    `errors` are those of the latents that each step takes for clean, by timestep.
    """

    def __init__(self, transformer: CausalTransformer, steps: Sequence[Step]) -> None:
        super().__init__(transformer)
        self.steps: Iterator[Step] = iter(steps)
        self.errors: dict[float, list[float]] = {}

    @override
    def prepare(self, rows: Sequence[Row]) -> EagerPass:
        return _Led(self, rows)


class _Led(EagerPass):
    def __init__(self, runner: LedRunner, rows: Sequence[Row]) -> None:
        super().__init__(runner, rows)
        self._led = runner

    @override
    def denoise(self, latents: Tensor, noise: Tensor | None) -> Tensor:
        step = next(self._led.steps)
        clean = super().denoise(step.given.to(latents.dtype), None).float()
        error = (clean - step.clean).norm() / step.clean.norm()
        self._led.errors.setdefault(step.timestep, []).append(float(error))
        return step.made.to(latents.dtype)
