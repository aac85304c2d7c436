"""What is seen of a transformer's inputs while it makes videos."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engines.config.presets import preset
from engines.config.stream import StreamConfig
from engines.config.video_stream import VideoStreamConfig
from engines.errors import ConfigError
from engines.loading.model import Model
from engines.quantization import calibration
from engines.quantization.calibration import calibrate
from engines.quantization.inputs import layer_inputs, watched
from engines.streaming.builder import EngineConfig, build_generator
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt


def test_every_input_of_every_block_is_seen(model: Model, small: StreamConfig, prompts: list[Prompt]) -> None:
    made: list[int] = []
    statistics = calibrate(model, prompts[:2], small, 3, made.append)
    names = {given.name for given in layer_inputs(model.config.transformer)}
    assert statistics.maxima.keys() == statistics.moments.keys() == names
    assert made == [3, 6]
    assert all((most > 0).any() for most in statistics.maxima.values())
    for name, moments in statistics.moments.items():
        channels = len(statistics.maxima[name])
        assert moments.shape == (channels, channels)


def test_a_model_that_restyles_videos_is_watched_as_it_does(prompts: list[Prompt]) -> None:
    model = Model.random(preset("tiny"), 1, networks=["transformer", "codec"])
    config = VideoStreamConfig(seed=3, height=16, width=32, steps=(700, 500, 300))
    asked: list[int] = []

    def pictures(number: int) -> Tensor:
        asked.append(number)
        generator = torch.Generator().manual_seed(number)
        return torch.randint(0, 256, (40, 16, 32, 3), dtype=torch.uint8, generator=generator)

    passes: list[float] = []
    modulations = model.transformer.modulations

    def noted(timesteps: Tensor) -> object:
        passes.extend(timesteps.flatten().tolist())
        return modulations(timesteps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.transformer, "modulations", noted)
        restyled = calibrate(model, prompts[:2], config, 8, footage=pictures)
    assert asked == [0, 1]
    assert {500.0, 300.0} <= set(passes)
    assert 1000.0 not in passes
    assert restyled.maxima.keys() == {given.name for given in layer_inputs(model.config.transformer)}
    with pytest.raises(ConfigError, match="is calibrated with pictures of one"):
        calibrate(model, prompts[:2], config, 8)


def test_what_is_run_to_measure_memory_is_not_watched(
    model: Model, small: StreamConfig, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_cuda(
        model: Model, config: EngineConfig, exercise: Callable[[Generator, EngineConfig], None]
    ) -> Generator:
        generator = build_generator(model, config)
        exercise(generator, config)
        return generator

    wanted = calibrate(model, prompts[:1], small, 2).maxima
    monkeypatch.setattr(calibration, "build_generator", on_cuda)
    seen = calibrate(model, prompts[:1], small, 2).maxima
    assert all(torch.equal(seen[name], wanted[name]) for name in wanted)


def test_nothing_is_watched_afterwards(model: Model) -> None:
    config = model.config.transformer
    with watched(model.transformer, config) as statistics:
        pass
    model.transformer.get_submodule("blocks.0.ffn.0")(torch.ones(1, config.dim))
    assert not statistics.maxima


def test_maxima_and_moments_grow_with_every_pass(model: Model) -> None:
    layer = model.transformer.get_submodule("blocks.1.ffn.0")
    rows = torch.randn(2, 3, model.config.transformer.dim, generator=torch.Generator().manual_seed(1))
    with watched(model.transformer, model.config.transformer) as statistics:
        layer(rows)
        layer(-3 * rows[:1])
    flat = torch.cat([rows.flatten(0, 1), 3 * rows[0]])
    assert torch.equal(statistics.maxima["blocks.1.ffn.0"], flat.abs().amax(dim=0))
    torch.testing.assert_close(statistics.moments["blocks.1.ffn.0"], flat.t() @ flat)


def test_there_must_be_something_to_watch(model: Model, small: StreamConfig, prompts: list[Prompt]) -> None:
    with pytest.raises(ConfigError, match="no prompts"):
        calibrate(model, [], small, 3)
    with pytest.raises(ConfigError, match="blocks is 1; it must be at least 2"):
        calibrate(model, prompts, small, 1)
