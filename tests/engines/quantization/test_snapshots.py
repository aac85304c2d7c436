"""Snapshots and forks of a quantized model: they go on as it would, and only on the same one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

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
from tests.engines.quantization.conftest import Watched
from tests.support.quantized import INT8, POCKET, quantized, unrounded

RECIPES = (INT8, replace(INT8, smoothing=0.0), QuantizationConfig("fp8"))


@pytest.fixture(scope="module")
def models(model: Model, prompts: list[Prompt]) -> dict[QuantizationConfig | None, Model]:
    stream = StreamConfig(height=32, width=48)
    statistics = calibrate(model, prompts[:1], stream, 2)
    made: dict[QuantizationConfig | None, Model] = {None: model}
    return made | {recipe: quantized(model, recipe, statistics) for recipe in RECIPES}


def running(model: Model, config: StreamConfig, prompt: Prompt, blocks: int = 2) -> tuple[Generator, Stream]:
    """Some blocks of a stream on a generator of its own."""
    generator = build_generator(model, EngineConfig(config, sessions=2))
    stream = generator.open(config)
    generator.set_prompt(stream, prompt)
    for _ in range(blocks):
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


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_light_snapshot_goes_on_as_the_stream_does_that_is_rebuilt(
    models: dict[QuantizationConfig | None, Model], small: StreamConfig, prompts: list[Prompt],
    recipe: QuantizationConfig,
) -> None:  # fmt: skip
    generator, stream = running(models[recipe], small, prompts[0], blocks=5)
    snapshot = take_light(generator, stream)
    generator.rebuild(stream)
    other, _ = running(models[recipe], small, prompts[1])
    restored = restore(other, snapshot).stream
    assert torch.equal(other.generate([restored])[0].latents, generator.generate([stream])[0].latents)


def continued(generator: Generator, stream: Stream, prompt: Prompt) -> Tensor:
    """Latents of two blocks, the second of them under another prompt."""
    [first] = generator.generate([stream])
    generator.set_prompt(stream, prompt)
    return torch.cat([first.latents, generator.generate([stream])[0].latents])


@pytest.mark.parametrize("take", [take_exact, take_light])
def test_where_nothing_is_rounded_a_snapshot_goes_on_as_the_model_itself(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, take: Callable[[Generator, Stream], bytes]
) -> None:
    generator, stream = running(watched.model, POCKET.stream, watched.shown[0], blocks=5)
    if take is take_light:
        generator.rebuild(stream)
    wanted = continued(generator, stream, watched.shown[1])
    folded = unrounded(watched.model, watched.statistics, monkeypatch)
    other, taken = running(folded, POCKET.stream, watched.shown[0], blocks=5)
    made = continued(other, restore(other, take(other, taken)).stream, watched.shown[1])
    assert (made - wanted).norm() < 1e-5 * wanted.norm()


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
    take: Callable[[Generator, Stream], bytes], made: QuantizationConfig | None, here: QuantizationConfig | None,
    complaint: str,
) -> None:  # fmt: skip
    generator, stream = running(models[made], small, prompts[0])
    snapshot = take(generator, stream)
    with pytest.raises(SnapshotError, match=complaint):
        restore(running(models[here], small, prompts[0])[0], snapshot)
