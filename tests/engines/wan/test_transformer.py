from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from engines.config.presets import preset
from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.runner.eager import EagerAttention
from engines.runner.rows import Row, TokenGrid
from engines.sampling.flow_schedule import CLEAN
from engines.streaming.generator import Generator
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from engines.wan.fused_ops import FusedOps
from engines.wan.layer_ops import EAGER_OPS, LayerOps
from engines.wan.transformer import CausalTransformer
from kernels.attention.rope import spatial_freqs
from kernels.dispatch import EAGER, KernelBackends


def first_pass(generator: Generator, stream: Stream, prompt: Prompt) -> EagerAttention:
    """What the first pass over a stream attends."""
    generator.set_prompt(stream, prompt)
    config, place = stream.config, stream.policy.place(0, 3, repeat=False)
    grid = TokenGrid(config.rows, config.columns)
    row = Row(stream.lanes[0], stream.require_prompt_kv(), place, grid, CLEAN)
    spatial = spatial_freqs(*grid, generator.cache.layout.head_dim)
    return EagerAttention(generator.cache, row, spatial)


@pytest.mark.parametrize("name", ["longlive-1.3b", "self-forcing-1.3b"])
def test_the_real_model_has_as_many_parameters_as_published(name: str) -> None:
    with torch.device("meta"):
        transformer = CausalTransformer(preset(name).transformer)
    assert sum(parameter.numel() for parameter in transformer.parameters()) == 1_418_996_800
    assert len(transformer.state_dict()) == 825


@torch.inference_mode()
def test_a_pass_for_its_keys_and_values_writes_what_a_full_pass_does(
    model: Model, generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    x, modulations = torch.randn(1, 3, 16, 4, 6), model.transformer.modulations(torch.zeros(1, 3))
    full, short = generator.open(small), generator.open(small)
    model.transformer.denoise(x, modulations, first_pass(generator, full, prompts[0]))
    model.transformer.write_kv(x, modulations, first_pass(generator, short, prompts[0]))
    for ours, wanted in zip(*(generator.cache.state(s.lanes[0], 3).values() for s in (short, full)), strict=True):
        assert torch.equal(ours, wanted)


@torch.inference_mode()
def test_a_prompts_padding_folded_into_one_key_changes_nothing(
    model: Model, generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    x, times = torch.randn(1, 3, 16, 4, 6), torch.full((1, 3), 625.0)
    padded = torch.zeros(256, 32)
    padded[:3] = prompts[0].rows

    def flow(prompt: Prompt) -> Tensor:
        return model.transformer(x, times, first_pass(generator, generator.open(small), prompt))

    torch.testing.assert_close(flow(prompts[0]), flow(Prompt("padded", padded)), atol=2e-6, rtol=0)


@torch.inference_mode()
def test_a_pixel_of_flow_lies_where_its_patch_was(model: Model) -> None:
    transformer = model.transformer
    patches = torch.zeros(1, 2, 6, 64)
    patches[0, 1, 4, (1 * 2 + 0) * 16 + 9] = 1.0
    flow = transformer._unpatch(patches, rows=2)
    assert flow.shape == (1, 2, 16, 4, 6)
    assert flow.nonzero().tolist() == [[0, 1, 9, 3, 2]]


@torch.inference_mode()
def test_each_frame_may_have_a_time_of_its_own(
    model: Model, generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    x = torch.randn(1, 3, 16, 4, 6)
    even, uneven = (
        model.transformer(x, torch.tensor([times]), first_pass(generator, generator.open(small), prompts[0]))
        for times in ([500.0, 500.0, 500.0], [500.0, 500.0, 900.0])
    )
    assert not torch.allclose(even, uneven, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("backends", [EAGER, replace(EAGER, layernorm_modulate="triton")], ids=str)
def test_frames_may_share_one_time(
    model: Model, generator: Generator, small: StreamConfig, prompts: list[Prompt], backends: KernelBackends
) -> None:
    x, transformer, passes = torch.randn(1, 3, 16, 4, 6), model.transformer, []
    ops = FusedOps(transformer, backends)
    for frames in (1, 3):
        stream, modulations = generator.open(small), transformer.modulations(torch.full((1, frames), 500.0))
        flow = transformer.denoise(x, modulations, first_pass(generator, stream, prompts[0]), ops)
        transformer.write_kv(2 * x, modulations, first_pass(generator, stream, prompts[0]), ops)
        passes.append((flow, *generator.cache.state(stream.lanes[0], 3).values()))
    for shared, each in zip(*passes, strict=True):
        torch.testing.assert_close(shared, each, atol=1e-6, rtol=0)


class NamedOps:
    """The eager ops; `given` are the names that they get, each with its module."""

    def __init__(self) -> None:
        self.given: list[tuple[str, object]] = []

    def __getattr__(self, op: str) -> Callable[..., object]:
        def noted(name: str, module: object, *rest: object) -> object:
            self.given.append((name, module))
            return getattr(EAGER_OPS, op)(name, module, *rest)

        return noted


@torch.inference_mode()
def test_every_op_is_given_its_modules_name(
    model: Model, generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    x, transformer, ops = torch.randn(1, 3, 16, 4, 6), model.transformer, NamedOps()
    modulations = transformer.modulations(torch.zeros(1, 3))
    context = first_pass(generator, generator.open(small), prompts[0])
    transformer.denoise(x, modulations, context, cast(LayerOps, ops))
    transformer.write_kv(x, modulations, context, cast(LayerOps, ops))
    assert all(transformer.get_submodule(name) is module for name, module in ops.given)
    layers = len(transformer.blocks)
    assert len(ops.given) == 5 * layers + 1 + 5 * (layers - 1) + 1


@torch.inference_mode()
def test_a_bf16_network_can_compute_its_modulations_in_fp32() -> None:
    config = replace(preset("tiny").transformer, fp32_time=True)
    exact = CausalTransformer(config)
    exact.load_state_dict({name: x.bfloat16() for name, x in exact.state_dict().items()})
    rounded = deepcopy(exact).bfloat16()
    times = torch.full((1, 1), 999.375)
    for ours, wanted in zip(rounded.modulations(times)[1:], exact.modulations(times)[1:], strict=True):
        assert torch.equal(ours, wanted.bfloat16())
