"""What is made once, before the first viewer comes, and stays of use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.cache.kv_cache import cache_size
from engines.config.presets import preset
from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.runner.fused import FusedRunner
from engines.streaming.generator import Generator
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.streaming.warmup import block_seconds, warm_up
from engines.text.prompt import Prompt
from kernels.dispatch import backends_for, parse_backends
from tests.support.fake_capture import Recordings
from tests.support.generators import denoiser_for, generator_for
from tests.support.rollouts import roll


def test_warming_up_reports_how_far_it_is_and_leaves_nothing_open(model: Model, small: StreamConfig) -> None:
    generator = generator_for(model, sessions=2, config=small, batch=2)
    progress = list(warm_up(generator, small, streams=2))
    assert [step.done for step in progress] == list(range(13))
    assert {step.of for step in progress} == {12}
    generator.open(small)
    generator.open(small)


def test_every_recache_is_made_while_warming_up(
    model: Model, generator: Generator, small: StreamConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: set[int] = set()
    write_kv = model.transformer.write_kv

    def noted(latents: Tensor, *args: Any) -> None:
        frames.add(latents.shape[1])
        write_kv(latents, *args)

    monkeypatch.setattr(model.transformer, "write_kv", noted)
    list(warm_up(generator, small))
    assert frames == {3, 6, 9, 12}


def test_nothing_is_recorded_once_all_is_warm(prompts: list[Prompt]) -> None:
    tiny = preset("tiny-taehv")
    transformer = Model.random(replace(tiny, transformer=replace(tiny.transformer, layers=1)), seed=1).transformer
    backends = backends_for(torch.device("cpu"), torch.float32, parse_backends("triton,linear=library"))
    record = Recordings()
    config = StreamConfig(height=16, width=32, window_frames=6, steps=(1000, 500))
    size = cache_size(2, config, transformer.config)
    generator = denoiser_for(transformer, runner=FusedRunner(transformer, backends, record), size=size, batch=2)
    assert len(list(warm_up(generator, config, streams=2))) == 2 * 4 + 1
    made = record.made
    streams = [generator.open(config) for _ in range(2)]
    roll(generator, streams[0], 4, {0: prompts[0], 3: prompts[1]})
    roll(generator, streams[1], 4, {0: prompts[0], 3: prompts[1]})
    generator.generate(streams)
    generator.write_context(streams)
    assert record.made == made > 0


def test_a_block_is_timed_with_the_window_full_and_leaves_nothing_behind(
    generator: Generator, small: StreamConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    whole = Generator.generate

    def counted(self: Generator, streams: Sequence[Stream], cancelled: Event | None = None) -> list[Block]:
        made.append(streams[0].latent_frames)
        return whole(self, streams, cancelled)

    monkeypatch.setattr(Generator, "generate", counted)
    free = generator.cache.windows.free
    assert 0 < block_seconds(generator, small) < 10
    assert made[-3:] == [12, 15, 18]
    assert generator.cache.windows.free == free
