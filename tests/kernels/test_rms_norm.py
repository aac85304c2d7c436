from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.rms_norm import rms_norm
from kernels.token_rows import rms_norm_reference
from tests.tolerances import assert_within

EPS = 1e-6


def rows(batch: int, tokens: int, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    x, weight = (
        torch.randn(batch, tokens, channels, generator=generator),
        torch.randn(channels, generator=generator),
    )
    return x.to(device), weight.to(device)


def test_the_reference_is_pytorchs_norm() -> None:
    x, weight = rows(2, 5, 96, torch.device("cpu"))
    torch.testing.assert_close(rms_norm_reference(x, weight, EPS), F.rms_norm(x, [96], weight, EPS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 96), (2, 7, 77), (1, 3, 1536)], ids=str)
def test_rows_are_normed_and_weighted(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    x, weight = (t.to(dtype) for t in rows(*shape, device))
    assert_within("rms_norm", rms_norm(x, weight, EPS), rms_norm_reference(x.float(), weight.float(), EPS))


def test_rows_may_be_a_part_of_wider_ones(device: torch.device) -> None:
    x, weight = rows(2, 5, 96, device)
    part = x[..., 32:64]
    assert_within("rms_norm", rms_norm(part, weight[:32], EPS), rms_norm_reference(part, weight[:32], EPS))


def test_unevenly_spaced_rows_are_refused(device: torch.device) -> None:
    x, weight = rows(2, 6, 96, device)
    with pytest.raises(
        ValueError, match=r"x must be \[B, T, channels\].* got \[2, 5, 96\] with strides \[576, 96, 1\]"
    ):
        rms_norm(x[:, :5], weight, EPS)


def test_a_weight_for_other_rows_is_refused(device: torch.device) -> None:
    x, weight = rows(1, 2, 96, device)
    with pytest.raises(ValueError, match=r"weight must be contiguous \[96\] .* got \[95\]"):
        rms_norm(x, weight[:95], EPS)


def test_rows_beyond_the_tile_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="rows of 2049 channels; its tile takes at most 2048"):
        rms_norm(*rows(1, 1, 2049, device), EPS)
