"""What 8 bits cost the pocket model: its latents and its pictures beside those in fp32 and in bf16."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from engines.config.quantization import QuantizationConfig
from engines.loading.model import Model
from engines.quantization.calibration import calibrate
from engines.wan.layers import MODULATIONS
from engines.wan.quantized_linear import QuantizedLinear
from kernels.eight_bits import scaled_linear_reference
from tests.engines.quantization.conftest import Watched
from tests.support.quantized import (
    INT8,
    POCKET,
    POCKET_INT8,
    pocket,
    quantized,
    relative_errors,
    rolled_out,
    unrounded,
)

BLOCKS = 6

BESIDE_BF16 = 1.5
"""The most that the error may be of bf16's where no layer is held back."""


class Exact(NamedTuple):
    """Latents in fp32, and what running the same in bf16 makes."""

    latents: Tensor
    in_bf16: Tensor


@pytest.fixture(scope="session")
def exact(watched: Watched) -> Exact:
    latents = rolled_out(watched.model, POCKET.stream, watched.shown, BLOCKS)
    return Exact(latents, rolled_out(pocket(torch.bfloat16), POCKET.stream, watched.shown, BLOCKS))


@pytest.fixture(scope="session")
def int8(watched: Watched) -> Model:
    return quantized(watched.model, INT8, watched.statistics)


def psnr(model: Model, latents: Tensor, wanted: Tensor) -> Tensor:
    """Of decoded streams, [streams, blocks] in dB."""
    pictures, others = (decoded(model, x) for x in (latents, wanted))
    return torch.stack([
        10 * torch.log10(1 / (ours - theirs).square().flatten(1).mean(dim=1))
        for ours, theirs in zip(pictures, others, strict=True)
    ], dim=1)  # fmt: skip


@torch.inference_mode()
def decoded(model: Model, latents: Tensor) -> list[Tensor]:
    """Pictures of each block in 255 levels, [streams, frames, 3, height, width] in 0..1."""
    cache, made = model.vae.start_decoding(), []
    for block in latents.unbind(1):
        frames, cache = model.vae.decode(block, cache)
        made.append((frames.clamp(0, 1) * 255).round() / 255)
    return made


def test_int8_costs_less_than_bf16(watched: Watched, exact: Exact) -> None:
    model = quantized(watched.model, POCKET_INT8, watched.statistics)
    latents = rolled_out(model, POCKET.stream, watched.shown, BLOCKS)
    errors, bf16 = (relative_errors(made, exact.latents) for made in (latents, exact.in_bf16))
    assert errors.median() <= bf16.median()
    assert errors[:, -1].median() <= bf16[:, -1].median()
    decibels = psnr(watched.model, latents, exact.latents)
    assert decibels.median() >= 52
    assert decibels.min() >= 48


def test_with_no_layer_held_back_int8_keeps_the_picture_as_bf16_does(
    watched: Watched, exact: Exact, int8: Model
) -> None:
    latents = rolled_out(int8, POCKET.stream, watched.shown, BLOCKS)
    errors, bf16 = (relative_errors(made, exact.latents) for made in (latents, exact.in_bf16))
    assert errors.median() <= BESIDE_BF16 * bf16.median()
    decibels, beside = (psnr(watched.model, made, exact.latents) for made in (latents, exact.in_bf16))
    assert decibels.median() >= beside.median() - 1
    assert decibels.min() >= beside.min()


def test_the_library_multiplies_as_the_reference(
    watched: Watched, int8: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = rolled_out(int8, POCKET.stream, watched.shown[:1], 2)
    for layer in int8.transformer.modules():
        if isinstance(layer, QuantizedLinear):
            monkeypatch.setattr(layer, "format", layer.format._replace(linear=scaled_linear_reference))
    assert torch.equal(rolled_out(int8, POCKET.stream, watched.shown[:1], 2), latents)


def test_compensated_rounding_loses_less_than_the_nearest(watched: Watched, exact: Exact, int8: Model) -> None:
    nearest = quantized(watched.model, replace(INT8, rounding="nearest"), watched.statistics)
    errors = [
        relative_errors(rolled_out(model, POCKET.stream, watched.shown[:2], 2), exact.latents[:2, :2])
        for model in (int8, nearest)
    ]
    assert errors[0].median() < 0.95 * errors[1].median()


def test_fp8_keeps_the_picture(watched: Watched, exact: Exact) -> None:
    fp8 = quantized(watched.model, QuantizationConfig("fp8", rounding="compensated"), watched.statistics)
    latents = rolled_out(fp8, POCKET.stream, watched.shown[:2], 2)
    assert relative_errors(latents, exact.latents[:2, :2]).median() < 0.06


def with_outliers(factor: float) -> Model:
    """The pocket model with 1 % of the channels of all that is rounded `factor` times as wide.

    What makes them is wider, and the weights of the layers that read them take it back: no result changes, but
    that GELU has a sharper bend in 1 % of its channels.
    """
    wide = pocket()
    state, generator = wide.transformer.state_dict(), torch.Generator().manual_seed(3)
    dim, ffn_dim = POCKET.transformer.dim, POCKET.transformer.ffn_dim
    normed = torch.randperm(dim, generator=generator)[:2]
    widen_modulated(state, normed, factor)
    for block in range(POCKET.transformer.layers):
        chosen, hidden = (torch.randperm(size, generator=generator)[: size // 96] for size in (dim, ffn_dim))
        for made, read, channels in (
            ("self_attn.v", "self_attn.o", chosen),
            ("norm3", "cross_attn.q", chosen),
            ("cross_attn.v", "cross_attn.o", chosen),
            ("ffn.0", "ffn.2", hidden),
        ):
            state[f"blocks.{block}.{made}.weight"][channels] *= factor
            state[f"blocks.{block}.{made}.bias"][channels] *= factor
            state[f"blocks.{block}.{read}.weight"][:, channels] /= factor
    return wide


def widen_modulated(state: dict[str, Tensor], channels: Tensor, factor: float) -> None:
    """The same of what self attention and the feed-forward net read: all blocks share the time's projection."""
    projected = [state[f"time_projection.1.{name}"].unflatten(0, (MODULATIONS, -1)) for name in ("weight", "bias")]
    for norm, layers in ((0, ("self_attn.q", "self_attn.k", "self_attn.v")), (3, ("ffn.0",))):
        for modulation, plus in ((norm, 0.0), (norm + 1, factor - 1)):
            for tensor in projected:
                tensor[modulation, channels] *= factor
            for block in range(POCKET.transformer.layers):
                own = state[f"blocks.{block}.modulation"][0, modulation]
                own[channels] = factor * own[channels] + plus
        for block in range(POCKET.transformer.layers):
            for layer in layers:
                state[f"blocks.{block}.{layer}.weight"][:, channels] /= factor


@pytest.mark.slow
def test_smoothing_takes_the_harm_out_of_wide_channels(watched: Watched) -> None:
    wide = with_outliers(30)
    statistics = calibrate(wide, watched.prompts, POCKET.stream, blocks=5)
    wanted = rolled_out(wide, POCKET.stream, watched.shown, BLOCKS)
    in_bf16 = Model.of(wide.config, deepcopy(wide.transformer).to(torch.bfloat16), wide.vae, None)
    smoothed, rough, bf16 = (
        relative_errors(rolled_out(model, POCKET.stream, watched.shown, BLOCKS), wanted).median()
        for model in (
            quantized(wide, POCKET_INT8, statistics),
            quantized(wide, replace(POCKET_INT8, smoothing=0.0), statistics),
            in_bf16,
        )
    )
    assert smoothed <= 1.2 * bf16
    assert rough > 5 * bf16


def test_folding_changes_nothing_where_nothing_is_rounded(
    watched: Watched, exact: Exact, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded = unrounded(watched.model, watched.statistics, monkeypatch)
    latents = rolled_out(folded, POCKET.stream, watched.shown, BLOCKS)
    assert relative_errors(latents, exact.latents).max() < 1e-5


def test_layers_that_are_held_back_are_as_they_were(watched: Watched) -> None:
    recipe = QuantizationConfig("int8", held_back=("blocks.1.ffn.2", "blocks.3.self_attn.v"))
    made = quantized(watched.model, recipe, watched.statistics).transformer
    layers = dict(made.named_modules())
    held = {name for name, layer in layers.items() if "blocks" in name and isinstance(layer, torch.nn.Linear)}
    assert {name for name in held if ".cross_attn." not in name} == set(recipe.held_back)
    name = "blocks.1.ffn.2.weight"
    assert torch.equal(made.state_dict()[name], watched.model.transformer.state_dict()[name])
