from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kernels.layernorm_modulate import (
    add_layernorm,
    add_layernorm_int8,
    add_layernorm_int8_reference,
    add_layernorm_modulate,
    add_layernorm_modulate_int8,
    add_layernorm_modulate_int8_reference,
    add_layernorm_modulate_reference,
    add_layernorm_reference,
    layernorm_modulate,
    layernorm_modulate_int8,
    layernorm_modulate_int8_reference,
    layernorm_modulate_reference,
)
from kernels.quantize import quantize_rows
from tests.tolerances import assert_within

EPS = 1e-6


def rows(batch: int, frames: int, tokens: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, and shift and factor as views into a table of six modulations."""
    generator = torch.Generator().manual_seed(3)
    x = 3 * torch.randn(batch, frames, tokens, dim, generator=generator) + 1
    table = torch.randn(batch, frames, 6, dim, generator=generator).to(device)
    shift, factor, *_ = table.unsqueeze(2).unbind(3)
    return x.to(device), shift, factor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 96), (2, 3, 7, 77), (1, 2, 5, 1536)], ids=str)
def test_rows_of_every_frame_are_normed_scaled_and_shifted(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    x, shift, factor = (t.to(dtype) for t in rows(*shape, device))
    reference = layernorm_modulate_reference(x.float(), shift.float(), factor.float(), EPS)
    assert_within("layernorm_modulate", layernorm_modulate(x, shift, factor, EPS), reference)


class Branch(NamedTuple):
    """What is added to rows, and gate, shift and factor of one table of six modulations."""

    x: Tensor
    branch: Tensor
    gate: Tensor
    shift: Tensor
    factor: Tensor


def branch(batch: int, frames: int, tokens: int, dim: int, device: torch.device) -> Branch:
    x, shift, factor = rows(batch, frames, tokens, dim, device)
    generator = torch.Generator().manual_seed(4)
    y = torch.randn(batch, frames, tokens, dim, generator=generator)
    gate = torch.randn(batch, frames, 6, dim, generator=generator).to(device).unsqueeze(2).unbind(3)[2]
    return Branch(x, y.to(device), gate, shift, factor)


def assert_added_and_normed(made: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> None:
    for name, ours, wanted in zip(("add", "layernorm_modulate"), made, reference, strict=True):
        assert_within(name, ours, wanted)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 96), (2, 3, 7, 77), (1, 2, 5, 1536)], ids=str)
def test_a_branch_is_added_and_the_sum_modulated(
    shape: tuple[int, int, int, int], dtype: torch.dtype, gated: bool, device: torch.device
) -> None:
    x, y, gate, shift, factor = (t.to(dtype) for t in branch(*shape, device))
    made = add_layernorm_modulate(x, y, gate if gated else None, shift, factor, EPS)
    x, y, gate, shift, factor = (t.float() for t in (x, y, gate, shift, factor))
    reference = add_layernorm_modulate_reference(x, y, gate if gated else None, shift, factor, EPS)
    assert_added_and_normed(made, reference)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 7, 77), (1, 2, 5, 1536)], ids=str)
def test_a_branch_is_added_and_the_sum_normed_with_weights(
    shape: tuple[int, int, int, int], dtype: torch.dtype, gated: bool, device: torch.device
) -> None:
    x, y, gate, shift, factor = (t.to(dtype) for t in branch(*shape, device))
    weight, bias = factor[0, 0, 0], shift[0, 0, 0]
    made = add_layernorm(x, y, gate if gated else None, weight, bias, EPS)
    x, y, gate, weight, bias = (t.float() for t in (x, y, gate, weight, bias))
    reference = add_layernorm_reference(x, y, gate if gated else None, weight, bias, EPS)
    assert_added_and_normed(made, reference)


@torch.no_grad()
def test_the_references_are_what_lies_between_the_transformers_layers() -> None:
    x, y, gate, shift, factor = branch(2, 3, 7, 96, torch.device("cpu"))
    affine = torch.nn.LayerNorm(96, eps=EPS)
    affine.load_state_dict({"weight": factor[0, 0, 0], "bias": shift[0, 0, 0]})
    added = x + y * gate
    sums, modulated = add_layernorm_modulate_reference(x, y, gate, shift, factor, EPS)
    assert torch.equal(sums, added)
    assert torch.equal(modulated, layernorm_modulate_reference(added, shift, factor, EPS))
    sums, normed = add_layernorm_reference(x, y, gate, affine.weight, affine.bias, EPS)
    assert torch.equal(sums, added)
    assert torch.equal(normed, affine(added))


def test_what_is_added_to_stays_as_it_was(device: torch.device) -> None:
    given = branch(1, 2, 3, 96, device)
    before = given.x.clone()
    add_layernorm_modulate(*given, EPS)
    assert torch.equal(given.x, before)


def test_gates_and_modulations_may_serve_all_frames_of_a_row(device: torch.device) -> None:
    x, y, *modulation = branch(2, 3, 4, 96, device)
    gate, shift, factor = (m[:, :1].expand(-1, 3, -1, -1) for m in modulation)
    assert gate.stride(1) == 0
    reference = add_layernorm_modulate_reference(x, y, gate, shift, factor, EPS)
    assert_added_and_normed(add_layernorm_modulate(x, y, gate, shift, factor, EPS), reference)


def test_a_branch_of_another_shape_is_refused(device: torch.device) -> None:
    x, y, *modulation = branch(1, 2, 3, 96, device)
    complaint = r"add_layernorm_modulate: branch is \[1, 2, 2, 96\] .* beside \[1, 2, 3, 96\]"
    with pytest.raises(ValueError, match=complaint):
        add_layernorm_modulate(x, y[:, :, :2].contiguous(), *modulation, EPS)


def test_a_gate_with_scattered_channels_is_refused(device: torch.device) -> None:
    x, y, gate, *modulation = branch(1, 2, 3, 96, device)
    scattered = torch.stack([gate, gate], dim=-1)[..., 0]
    with pytest.raises(ValueError, match=r"gate must be \[1, 2, 1, 96\] with neighboring channels"):
        add_layernorm_modulate(x, y, scattered, *modulation, EPS)


def test_weights_for_other_channels_are_refused(device: torch.device) -> None:
    x, y, gate, shift, factor = branch(1, 2, 3, 96, device)
    with pytest.raises(ValueError, match=r"add_layernorm: bias must be \[96\]; got \[95\]"):
        add_layernorm(x, y, gate, factor[0, 0, 0], shift[0, 0, 0, 1:], EPS)
    with pytest.raises(ValueError, match=r"add_layernorm_int8: weight must be \[96\]; got \[95\]"):
        add_layernorm_int8(x, y, gate, factor[0, 0, 0, 1:], shift[0, 0, 0], EPS)


def test_one_modulation_may_serve_all_frames(device: torch.device) -> None:
    x, shift, factor = rows(2, 3, 4, 96, device)
    shift, factor = shift[:1, :1].expand_as(shift), factor[:1, :1].expand_as(factor)
    assert_within(
        "layernorm_modulate",
        layernorm_modulate(x, shift, factor, EPS),
        layernorm_modulate_reference(x, shift, factor, EPS),
    )


def test_a_far_off_mean_does_not_drown_the_spread(device: torch.device) -> None:
    x, shift, factor = rows(1, 1, 3, 96, device)
    moved = x + 4096.0
    exact = layernorm_modulate_reference(moved.double(), shift.double(), factor.double(), EPS)
    torch.testing.assert_close(layernorm_modulate(moved, shift, factor, EPS).double(), exact, atol=1e-3, rtol=0)


INT8_SHAPES = [(2, 3, 7, 77), (1, 1, 5, 1536)]


def assert_within_a_level(made: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> None:
    (levels, scales), (expected_levels, expected_scales) = made, reference
    assert_within("layernorm_modulate", scales, expected_scales)
    assert (levels.int() - expected_levels.int()).abs().max() <= 1
    assert (levels != expected_levels).float().mean() < 1e-3


@pytest.mark.parametrize("shape", INT8_SHAPES, ids=str)
def test_int8_rows_are_the_reference_to_a_level(shape: tuple[int, int, int, int], device: torch.device) -> None:
    x, shift, factor = rows(*shape, device)
    reference = layernorm_modulate_int8_reference(x, shift, factor, EPS)
    assert_within_a_level(layernorm_modulate_int8(x, shift, factor, EPS), reference)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", INT8_SHAPES, ids=str)
def test_a_branch_is_added_and_the_sum_modulated_to_int8(
    shape: tuple[int, int, int, int], dtype: torch.dtype, gated: bool, device: torch.device
) -> None:
    x, y, gate, shift, factor = (t.to(dtype) for t in branch(*shape, device))
    given = x, y, gate if gated else None, shift, factor, EPS
    added, *normed = add_layernorm_modulate_int8(*given)
    expected, *reference = add_layernorm_modulate_int8_reference(*given)
    assert_within("add", added, expected)
    assert_within_a_level((normed[0], normed[1]), (reference[0], reference[1]))


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "whole"])
def test_a_branch_is_added_and_the_sum_normed_with_weights_to_int8(gated: bool, device: torch.device) -> None:
    x, y, gate, shift, factor = branch(2, 3, 7, 77, device)
    given = x, y, gate if gated else None, factor[0, 0, 0], shift[0, 0, 0], EPS
    added, *normed = add_layernorm_int8(*given)
    expected, *reference = add_layernorm_int8_reference(*given)
    assert_within("add", added, expected)
    assert_within_a_level((normed[0], normed[1]), (reference[0], reference[1]))


def test_the_int8_references_round_what_the_others_return() -> None:
    x, y, gate, shift, factor = branch(2, 3, 7, 96, torch.device("cpu"))
    added, normed = add_layernorm_modulate_reference(x, y, gate, shift, factor, EPS)
    for made, wanted in zip(
        add_layernorm_modulate_int8_reference(x, y, gate, shift, factor, EPS),
        (added, *quantize_rows(normed)),
        strict=True,
    ):
        assert torch.equal(made, wanted)
    weight, bias = factor[0, 0, 0], shift[0, 0, 0]
    _, levels, scales = add_layernorm_int8_reference(x, y, gate, weight, bias, EPS)
    _, affine = add_layernorm_reference(x, y, gate, weight, bias, EPS)
    assert_within_a_level((levels, scales), quantize_rows(affine))


def test_an_int8_row_is_the_same_whatever_rows_are_beside_it(device: torch.device) -> None:
    x, y, gate, shift, factor = branch(1, 1, 7, 96, device)
    together = add_layernorm_modulate_int8(x, y, gate, shift, factor, EPS)
    alone = add_layernorm_modulate_int8(
        x[:, :, 4:5].contiguous(), y[:, :, 4:5].contiguous(), gate, shift, factor, EPS
    )
    for made, whole in zip(alone, together, strict=True):
        assert torch.equal(made, whole[:, :, 4:5])


def test_int8_rows_use_all_levels_and_lose_half_a_scale(device: torch.device) -> None:
    x, shift, factor = rows(1, 2, 3, 96, device)
    levels, scales = layernorm_modulate_int8(x, shift, factor, EPS)
    error = levels * scales.unsqueeze(-1) - layernorm_modulate_reference(x, shift, factor, EPS)
    assert torch.equal(levels.abs().amax(-1).int(), torch.full((1, 2, 3), 127, device=device, dtype=torch.int32))
    assert (error.abs() <= scales.unsqueeze(-1) * 0.501).all()


def test_a_row_of_zeros_has_a_scale(device: torch.device) -> None:
    x, shift, factor = (torch.zeros_like(t) for t in rows(1, 1, 2, 96, device))
    levels, scales = layernorm_modulate_int8(x, shift, factor, EPS)
    assert not levels.any()
    assert (scales > 0).all()


def test_rows_that_are_not_contiguous_are_refused(device: torch.device) -> None:
    x, shift, factor = rows(1, 3, 4, 96, device)
    with pytest.raises(
        ValueError, match=r"layernorm_modulate: x must be contiguous .* got \[1, 3, 4, 96\] with strides"
    ):
        layernorm_modulate(x.transpose(1, 2).contiguous().transpose(1, 2), shift, factor, EPS)


def test_a_modulation_of_another_shape_or_dtype_is_refused(device: torch.device) -> None:
    x, shift, factor = rows(1, 3, 4, 96, device)
    with pytest.raises(ValueError, match=r"factor must be \[1, 3, 1, 96\].* got \[1, 2, 1, 96\]"):
        layernorm_modulate(x, shift, factor[:, :2], EPS)
    with pytest.raises(ValueError, match=r"shift is torch\.float16 .* the rows torch\.float32"):
        layernorm_modulate(x, shift.half(), factor, EPS)


def test_rows_beyond_the_tile_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="tokens of 2049 channels; its tile takes at most 2048"):
        layernorm_modulate(*rows(1, 1, 1, 2049, device), EPS)
