"""Streams that are led step by step by those of another transformer."""

from __future__ import annotations

import pytest
import torch

from benchmarks.quantization.rollout import LedRunner, RecordingRunner, Take
from benchmarks.quantization.variants import Variant, by_block, by_kind, rounded
from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.quantization.calibration import calibrate
from engines.quantization.inputs import InputStatistics
from engines.runner.eager import EagerRunner
from engines.text.prompt import Prompt
from engines.wan.quantized_linear import QuantizedLinear


@pytest.fixture
def take(small: StreamConfig, prompts: list[Prompt]) -> Take:
    return Take(small, prompts[:2], 4)


@pytest.fixture
def statistics(model: Model, take: Take) -> InputStatistics:
    return calibrate(model, take.prompts, take.stream, 2)


def test_what_is_recorded_is_what_would_have_been_made(model: Model, take: Take) -> None:
    runner, eager = RecordingRunner(model.transformer), EagerRunner(model.transformer)
    recorded, exact = (take.roll_out(one, model.transformer) for one in (runner, eager))
    for made, wanted in zip(recorded, exact, strict=True):
        assert torch.equal(made, wanted)
    assert len(runner.steps) == 2 * 4 * len(take.stream.steps)


def test_led_by_itself_a_transformer_makes_no_error(model: Model, take: Take) -> None:
    exact = RecordingRunner(model.transformer)
    take.roll_out(exact, model.transformer)
    led = LedRunner(model.transformer, exact.steps)
    take.roll_out(led, model.transformer)
    assert len(led.errors) == len(take.stream.steps)
    assert all(error == 0 for errors in led.errors.values() for error in errors)


def test_errors_of_one_step_do_not_reach_the_next(model: Model, take: Take, statistics: InputStatistics) -> None:
    exact = RecordingRunner(model.transformer)
    wanted = take.roll_out(exact, model.transformer)
    other = rounded(model.transformer, by_block(model.config)[0], statistics)
    made = take.roll_out(LedRunner(other, exact.steps), other)
    assert all(map(torch.equal, made, wanted))


def test_in_bf16_all_is(model: Model) -> None:
    copy = rounded(model.transformer, Variant("bf16", None, torch.bfloat16), InputStatistics())
    assert copy.dtype == torch.bfloat16
    assert model.transformer.dtype == torch.float32


def test_one_kind_or_one_block_is_quantized_alone(model: Model, statistics: InputStatistics) -> None:
    for variant in (by_kind(model.config)[-1], by_block(model.config)[1]):
        copy = rounded(model.transformer, variant, statistics)
        names = [name for name, layer in copy.named_modules() if isinstance(layer, QuantizedLinear)]
        assert names
        assert all(f".{variant.name}." in f"{name}." for name in names)
