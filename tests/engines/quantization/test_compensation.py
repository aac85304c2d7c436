"""Columns that make up for each other's errors."""

from __future__ import annotations

import torch

from engines.quantization.compensation import COLUMNS, round_compensated


def loss(weight: torch.Tensor, steps: torch.Tensor, rows: torch.Tensor) -> float:
    return float(((weight - steps) @ rows.double().t()).square().mean())


def test_outputs_lose_less_where_channels_go_together() -> None:
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(24, COLUMNS + 40, generator=generator)
    rows = torch.randn(2000, 24, generator=generator) @ mixed + 0.1 * torch.randn(2000, COLUMNS + 40)
    weight = 20 * torch.randn(16, COLUMNS + 40, generator=generator).double()
    steps = round_compensated(weight, rows.t() @ rows, torch.round)
    assert torch.equal(steps, steps.round())
    assert loss(weight, steps, rows) < 0.5 * loss(weight, weight.round(), rows)


def test_channels_that_have_nothing_in_common_go_to_the_nearest_step() -> None:
    weight = 20 * torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    assert torch.equal(round_compensated(weight, torch.eye(50), torch.round), weight.double().round())


def test_a_channel_that_is_never_used_does_no_harm() -> None:
    rows = torch.randn(100, 8)
    rows[:, 3] = 0
    steps = round_compensated(10 * torch.randn(4, 8), rows.t() @ rows, torch.round)
    assert steps.isfinite().all()
    assert round_compensated(torch.randn(4, 8), torch.zeros(8, 8), torch.round).isfinite().all()
