"""The modulations of a stream's timesteps."""

from __future__ import annotations

import pytest
import torch

from engines.config.stream import StreamConfig
from engines.errors import StreamError
from engines.loading.model import Model
from engines.runner.modulation import ModulationCache, batched
from engines.sampling.flow_schedule import CLEAN_TIMESTEP, FlowSchedule
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt
from engines.wan.transformer import AdaLNModulation, CausalTransformer
from tests.support.rollouts import roll


@pytest.fixture
def table(model: Model) -> ModulationCache:
    return ModulationCache(model.transformer, FlowSchedule((1000, 500), 5.0))


@torch.inference_mode()
def test_a_row_is_what_the_network_makes_of_the_timestep(model: Model, table: ModulationCache) -> None:
    kept = table.at(CLEAN_TIMESTEP, frames=2)
    for ours, made in zip(kept, model.transformer.modulations(torch.zeros(1, 2)), strict=True):
        assert torch.equal(ours, made)


def test_streams_of_a_batch_bring_their_own_rows(table: ModulationCache) -> None:
    noisy, clean = table.at(1000.0, frames=2), table.at(CLEAN_TIMESTEP, frames=2)
    both = batched([noisy, clean])
    assert both.timesteps.tolist() == [[1000.0, 1000.0], [0.0, 0.0]]
    assert torch.equal(both.layers[:, 1], clean.layers[:, 0])
    assert torch.equal(both.head[0], noisy.head[0])


def test_a_timestep_of_another_schedule_is_refused(table: ModulationCache) -> None:
    with pytest.raises(StreamError, match=r"timestep 625\.0, only at \(1000\.0, "):
        table.at(625.0, frames=2)


def test_a_stream_asks_the_network_once_for_every_timestep(
    model: Model, small: StreamConfig, prompts: list[Prompt]
) -> None:
    class Counted(CausalTransformer):
        calls = 0

        def modulations(self, timesteps: torch.Tensor) -> AdaLNModulation:
            self.calls += 1
            return super().modulations(timesteps)

    transformer = Counted(model.config.transformer)
    generator = Generator(transformer, None, slab_bytes=1 << 30)
    roll(generator, generator.open(small), 4, {0: prompts[0]})
    assert transformer.calls == len(small.steps) + 1
