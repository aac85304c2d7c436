from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engines.wan.layer_ops import EAGER_OPS
from kernels.layernorm_modulate import (
    layernorm_modulate,
    layernorm_modulate_int8,
    layernorm_modulate_int8_reference,
    layernorm_modulate_reference,
)
from tests.tolerances import assert_within

EPS = 1e-6


def rows(batch: int, frames: int, tokens: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, and shift and scale as views into a table of six modulations."""
    generator = torch.Generator().manual_seed(3)
    x = 3 * torch.randn(batch, frames, tokens, dim, generator=generator) + 1
    table = torch.randn(batch, frames, 6, dim, generator=generator).to(device)
    shift, scale, *_ = table.unsqueeze(2).unbind(3)
    return x.to(device), shift, scale


def test_the_reference_is_the_transformers_modulation() -> None:
    made = rows(2, 3, 7, 96, torch.device("cpu"))
    assert torch.equal(layernorm_modulate_reference(*made, EPS), EAGER_OPS.modulate(*made, EPS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 96), (2, 3, 7, 77), (1, 2, 5, 1536)], ids=str)
def test_rows_of_every_frame_are_normed_scaled_and_shifted(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    x, shift, scale = (t.to(dtype) for t in rows(*shape, device))
    reference = layernorm_modulate_reference(x.float(), shift.float(), scale.float(), EPS)
    assert_within("layernorm_modulate", layernorm_modulate(x, shift, scale, EPS), reference)


def test_one_modulation_may_serve_all_frames(device: torch.device) -> None:
    x, shift, scale = rows(2, 3, 4, 96, device)
    shift, scale = shift[:1, :1].expand_as(shift), scale[:1, :1].expand_as(scale)
    assert_within(
        "layernorm_modulate",
        layernorm_modulate(x, shift, scale, EPS),
        layernorm_modulate_reference(x, shift, scale, EPS),
    )


def test_a_far_off_mean_does_not_drown_the_spread(device: torch.device) -> None:
    x, shift, scale = rows(1, 1, 3, 96, device)
    moved = x + 4096.0
    exact = layernorm_modulate_reference(moved.double(), shift.double(), scale.double(), EPS)
    torch.testing.assert_close(layernorm_modulate(moved, shift, scale, EPS).double(), exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3, 7, 77), (1, 1, 5, 1536)], ids=str)
def test_int8_rows_are_the_reference_to_a_level(shape: tuple[int, int, int, int], device: torch.device) -> None:
    x, shift, scale = rows(*shape, device)
    levels, scales = layernorm_modulate_int8(x, shift, scale, EPS)
    expected_levels, expected_scales = layernorm_modulate_int8_reference(x, shift, scale, EPS)
    assert_within("layernorm_modulate", scales, expected_scales)
    assert (levels.int() - expected_levels.int()).abs().max() <= 1
    assert (levels != expected_levels).float().mean() < 1e-3


def test_int8_rows_use_all_levels_and_lose_half_a_scale(device: torch.device) -> None:
    x, shift, scale = rows(1, 2, 3, 96, device)
    levels, scales = layernorm_modulate_int8(x, shift, scale, EPS)
    error = levels * scales.unsqueeze(-1) - layernorm_modulate_reference(x, shift, scale, EPS)
    assert torch.equal(levels.abs().amax(-1).int(), torch.full((1, 2, 3), 127, device=device, dtype=torch.int32))
    assert (error.abs() <= scales.unsqueeze(-1) * 0.501).all()


def test_a_row_of_zeros_has_a_scale(device: torch.device) -> None:
    x, shift, scale = (torch.zeros_like(t) for t in rows(1, 1, 2, 96, device))
    levels, scales = layernorm_modulate_int8(x, shift, scale, EPS)
    assert not levels.any()
    assert (scales > 0).all()


def test_rows_that_are_not_contiguous_are_refused(device: torch.device) -> None:
    x, shift, scale = rows(1, 3, 4, 96, device)
    with pytest.raises(
        ValueError, match=r"layernorm_modulate: x must be contiguous .* got \[1, 3, 4, 96\] with strides"
    ):
        layernorm_modulate(x.transpose(1, 2).contiguous().transpose(1, 2), shift, scale, EPS)


def test_a_modulation_of_another_shape_or_dtype_is_refused(device: torch.device) -> None:
    x, shift, scale = rows(1, 3, 4, 96, device)
    with pytest.raises(ValueError, match=r"scale must be \[1, 3, 1, 96\].* got \[1, 2, 1, 96\]"):
        layernorm_modulate(x, shift, scale[:, :2], EPS)
    with pytest.raises(ValueError, match=r"shift is torch\.float16 .* the rows torch\.float32"):
        layernorm_modulate(x, shift.half(), scale, EPS)


def test_rows_beyond_the_tile_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="rows of 2049 channels; its tile takes at most 2048"):
        layernorm_modulate(*rows(1, 1, 1, 2049, device), EPS)
