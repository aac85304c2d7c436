"""The block loop never waits for the device: it reads no tensor back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from benchmarks.host_time import idle_stream, make_block
from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.runner.modulation import ModulationCache
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt
from engines.wan.transformer import CausalTransformer
from tests.support.generators import denoiser_for
from tests.support.readback import Readbacks
from tests.support.rollouts import roll, roll_pictures

CPU = torch.device("cpu")


def test_nothing_is_read_back_in_the_block_loop(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    stream = generator.open(small)
    generator.set_prompt(stream, prompts[0])
    with Readbacks() as readbacks:
        roll_pictures(generator, stream, 6, {2: prompts[1], 5: prompts[2]})
    assert readbacks.names == {}


def test_nothing_is_read_back_to_load_rows_for_kernels() -> None:
    generator, stream = idle_stream()
    with Readbacks() as readbacks:
        make_block(generator, stream)
        generator.set_prompt(stream, Prompt("other", torch.ones(2, generator.config.text_dim)))
        make_block(generator, stream)
    assert readbacks.names == {}


@pytest.mark.parametrize(
    "read",
    [Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, bool, int, float, [1.0].__getitem__, torch.nonzero],
    ids=lambda read: read.__name__,
)
def test_what_is_read_back_is_counted(read: Callable[[Tensor], object]) -> None:
    with Readbacks() as readbacks:
        read(torch.zeros((), dtype=torch.int64))
    assert readbacks.names.total() == 1


def test_values_that_are_copied_to_a_device_are_counted() -> None:
    with Readbacks() as readbacks:
        torch.tensor([1.0], device=CPU)
        torch.tensor([1.0])
    assert readbacks.names == {"tensor": 1}


def test_nothing_is_copied_for_a_timestep_that_no_pass_has_had(model: Model) -> None:
    modulations = ModulationCache(model.transformer)
    with Readbacks() as readbacks:
        modulations.batched([321.0, 20.0])
    assert readbacks.names == {}


@pytest.mark.parametrize("sink", ["global", "local"])
def test_a_device_whose_values_cannot_be_read_makes_blocks(
    model: Model, small: StreamConfig, sink: Literal["global", "local"]
) -> None:
    with torch.device("meta"):
        transformer = CausalTransformer(model.config.transformer)
    generator = denoiser_for(transformer)
    stream = generator.open(replace(small, sink=sink))
    first, second = (Prompt(text, torch.empty(3, 32, device="meta")) for text in ("a", "b"))
    made = roll(generator, stream, 6, {0: first, 5: second})
    assert made.shape == (18, 16, 4, 6)
    assert made.is_meta
