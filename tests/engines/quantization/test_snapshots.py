"""Snapshots and forks of a quantized model: they go on as it would, and only on the same one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engines.config.quantization import QuantizationConfig
from engines.config.stream import StreamConfig
from engines.errors import SnapshotError
from engines.loading.model import Model
from engines.quantization.calibration import calibrate
from engines.streaming.builder import EngineConfig, build_generator
from engines.streaming.generator import Generator
from engines.streaming.snapshot import restore, take_exact, take_light
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from tests.support.quantized import INT8, quantized

RECIPES = (INT8, replace(INT8, smoothing=0.0), QuantizationConfig("fp8"))


@pytest.fixture(scope="module")
def models(model: Model, prompts: list[Prompt]) -> dict[QuantizationConfig | None, Model]:
    stream = StreamConfig(height=32, width=48)
    statistics = calibrate(model, prompts[:1], stream, 2)
    made: dict[QuantizationConfig | None, Model] = {None: model}
    return made | {recipe: quantized(model, recipe, statistics) for recipe in RECIPES}


def running(model: Model, config: StreamConfig, prompt: Prompt) -> tuple[Generator, Stream]:
    """Two blocks of a stream on a generator of its own."""
    generator = build_generator(model, EngineConfig(config, sessions=2))
    stream = generator.open(config)
    generator.set_prompt(stream, prompt)
    for _ in range(2):
        [block] = generator.generate([stream])
        generator.decode(stream, block)
    return generator, stream


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_fork_and_an_exact_snapshot_go_on_bit_by_bit(
    models: dict[QuantizationConfig | None, Model], small: StreamConfig, prompts: list[Prompt],
    recipe: QuantizationConfig,
) -> None:  # fmt: skip
    generator, stream = running(models[recipe], small, prompts[0])
    snapshot, fork = take_exact(generator, stream), generator.fork(stream)
    other, _ = running(models[recipe], small, prompts[1])
    restored = restore(other, snapshot).stream
    [wanted] = generator.generate([stream])
    assert torch.equal(generator.generate([fork])[0].latents, wanted.latents)
    assert torch.equal(other.generate([restored])[0].latents, wanted.latents)


@pytest.mark.parametrize("take", [take_exact, take_light])
@pytest.mark.parametrize(
    ("made", "here", "complaint"),
    [
        (INT8, None, "the snapshot's quantization is int8, smoothing 0.5, rounding compensated, here it is None"),
        (None, INT8, "the snapshot's quantization is None, here it is int8, smoothing 0.5, rounding compensated"),
        (INT8, RECIPES[1], "here it is int8, rounding compensated"),
    ],
)
def test_a_snapshot_of_another_recipe_is_refused_by_name(
    models: dict[QuantizationConfig | None, Model], small: StreamConfig, prompts: list[Prompt],
    take: object, made: QuantizationConfig | None, here: QuantizationConfig | None, complaint: str,
) -> None:  # fmt: skip
    generator, stream = running(models[made], small, prompts[0])
    snapshot = (take_exact if take is take_exact else take_light)(generator, stream)
    with pytest.raises(SnapshotError, match=complaint):
        restore(running(models[here], small, prompts[0])[0], snapshot)
