"""The modulations of a stream's timesteps."""

from __future__ import annotations

import pytest
import torch

from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.runner.modulation import ModulationCache
from engines.text.prompt import Prompt
from engines.wan.transformer import AdaLNModulation, CausalTransformer
from tests.support.generators import denoiser_for
from tests.support.rollouts import roll


@pytest.fixture
def table(model: Model) -> ModulationCache:
    return ModulationCache(model.transformer, kept=3)


@torch.inference_mode()
def test_a_row_is_what_the_network_makes_of_the_timestep(model: Model, table: ModulationCache) -> None:
    for ours, made in zip(table.at(500.0), model.transformer.modulations(torch.full((1, 1), 500.0)), strict=True):
        assert torch.equal(ours, made)


def test_rows_of_a_batch_bring_their_own(table: ModulationCache) -> None:
    both = table.batched([1000.0, 0.0])
    assert both.timesteps.tolist() == [[1000.0], [0.0]]
    assert torch.equal(both.layers[:, 1], table.at(0.0).layers[:, 0])
    assert torch.equal(both.head[0], table.at(1000.0).head[0])


def test_only_the_latest_timesteps_are_kept(model: Model) -> None:
    made = list[float]()

    class Counted(CausalTransformer):
        def modulations(self, timesteps: torch.Tensor) -> AdaLNModulation:
            made.append(timesteps.item())
            return super().modulations(timesteps)

    table = ModulationCache(Counted(model.config.transformer), kept=3)
    for timestep in (1.0, 2.0, 3.0, 1.0, 4.0, 1.0, 2.0):
        table.at(timestep)
    assert made == [1.0, 2.0, 3.0, 4.0, 2.0]


def test_a_stream_asks_the_network_once_for_every_timestep(
    model: Model, small: StreamConfig, prompts: list[Prompt]
) -> None:
    class Counted(CausalTransformer):
        calls = 0

        def modulations(self, timesteps: torch.Tensor) -> AdaLNModulation:
            self.calls += 1
            return super().modulations(timesteps)

    transformer = Counted(model.config.transformer)
    generator = denoiser_for(transformer)
    roll(generator, generator.open(small), 4, {0: prompts[0]})
    assert transformer.calls == len(small.steps) + 1
