"""What is made once, before the first viewer comes, and stays of use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.cache.kv_pool import KVPool, KVRun
from engines.cache.window import WindowLayout
from engines.config.presets import preset
from engines.config.stream import StreamConfig
from engines.errors import PoolFull
from engines.loading.model import Model
from engines.runner.fused import FusedRunner
from engines.runner.warmup import warm_up
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt
from kernels.dispatch import backends_for, parse_backends
from tests.support.fake_capture import Recordings
from tests.support.rollouts import roll

LAYOUT = WindowLayout(layers=1, heads=1, head_dim=8, block_tokens=2, sink_blocks=1, window_blocks=2)
LARGE = replace(LAYOUT, window_blocks=3)


def pool(slabs: int, *, kept: bool, dropped: list[KVRun]) -> KVPool:
    """With room for so many slabs of LAYOUT."""
    limit = slabs * LAYOUT.nbytes(torch.float32)
    return KVPool(limit, torch.device("cpu"), torch.float32, kept=kept, dropped=dropped.append)


def test_a_kept_slab_serves_the_next_stream_of_its_layout() -> None:
    slabs = pool(2, kept=True, dropped=[])
    first = slabs.take(LAYOUT)
    slabs.give_back(first)
    assert slabs.take(LAYOUT) is first
    assert slabs.take(LAYOUT) is not first


def test_a_slab_is_freed_at_once_where_nothing_knows_its_address() -> None:
    dropped: list[KVRun] = []
    slabs = pool(1, kept=False, dropped=dropped)
    first = slabs.take(LAYOUT)
    slabs.give_back(first)
    assert dropped == [first]
    assert slabs.take(LAYOUT) is not first


def test_kept_slabs_make_way_for_another_layout() -> None:
    dropped: list[KVRun] = []
    slabs = pool(2, kept=True, dropped=dropped)
    first, second = slabs.take(LAYOUT), slabs.take(LAYOUT)
    with pytest.raises(PoolFull, match="there are 0 left"):
        slabs.take(LARGE)
    slabs.give_back(second)
    slabs.give_back(first)
    assert slabs.take(LARGE).layout == LARGE
    assert dropped == [second, first]


def test_warming_up_reports_how_far_it_is_and_leaves_nothing_open(model: Model, small: StreamConfig) -> None:
    slab = WindowLayout.of(model.config.transformer, small).nbytes(torch.float32)
    generator = Generator(model.transformer, model.codec, slab_bytes=2 * slab)
    progress = list(warm_up(generator, small, streams=2))
    assert [step.done for step in progress] == list(range(13))
    assert {step.of for step in progress} == {12}
    generator.open(small)
    generator.open(small)


def test_every_recache_is_made_while_warming_up(
    generator: Generator, small: StreamConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: set[int] = set()
    write_kv = generator.transformer.write_kv

    def noted(latents: Tensor, *args: Any) -> None:
        frames.add(latents.shape[1])
        write_kv(latents, *args)

    monkeypatch.setattr(generator.transformer, "write_kv", noted)
    list(warm_up(generator, small))
    assert frames == {3, 6, 9, 12}


def test_nothing_is_recorded_once_all_is_warm(prompts: list[Prompt]) -> None:
    tiny = preset("tiny-taehv")
    transformer = Model.random(replace(tiny, transformer=replace(tiny.transformer, layers=2)), seed=1).transformer
    backends, record = (
        backends_for(torch.device("cpu"), torch.float32, parse_backends("triton,linear=library")),
        Recordings(),
    )
    runner = FusedRunner(transformer, backends, record)
    generator = Generator(transformer, None, slab_bytes=1 << 30, runner=runner, batch=2)
    config = StreamConfig(height=16, width=32, window_frames=6, steps=(1000, 500))
    assert len(list(warm_up(generator, config, streams=2))) == 3 * 4 + 1
    made = record.made
    streams = [generator.open(config) for _ in range(2)]
    roll(generator, streams[0], 4, {0: prompts[0], 3: prompts[1]})
    roll(generator, streams[1], 4, {0: prompts[0], 3: prompts[1]})
    generator.generate(streams)
    generator.write_context(streams)
    assert record.made == made > 0
